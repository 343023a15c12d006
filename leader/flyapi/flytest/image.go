package flytest

import (
	"strings"

	fly "github.com/superfly/fly-go"
)

// imageRef splits registry/repository:tag@digest.
func imageRef(image string) fly.MachineImageRef {
	var r fly.MachineImageRef
	image, r.Digest, _ = strings.Cut(image, "@")
	if first, rest, ok := strings.Cut(image, "/"); ok && strings.ContainsAny(first, ".:") {
		r.Registry, image = first, rest
	} else {
		r.Registry = "docker-hub-mirror.fly.io"
	}
	r.Repository, r.Tag, _ = strings.Cut(image, ":")
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r
}

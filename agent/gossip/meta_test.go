package gossip

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func fullMeta() Meta {
	return Meta{
		Machine: "148ed193b91789", Boot: strings.Repeat("0f", 16),
		BootAt: time.Date(2026, 11, 1, 2, 3, 4, 5, time.UTC), Epoch: 7,
		Cluster: "7-" + strings.Repeat("0f", 16), App: "acme-embeddings", Service: "embeddings",
		Group: "app", Region: "fra", Role: Voter, MeshAddr: "[fdaa:0:18:a7b:7d:1:2:3]:7947",
		Version: "0.1.0", Config: "01234567", Eligible: true, Burst: true, Leaving: true,
	}
}

func TestMetaRoundTrip(t *testing.T) {
	zero := Meta{Machine: "m", Boot: "b", Role: Agent}
	for _, want := range []Meta{fullMeta(), zero} {
		b, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeMeta(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		for cut := range b {
			if _, err := DecodeMeta(b[:cut]); err == nil {
				t.Errorf("first %d of %d bytes decode", cut, len(b))
			}
		}
		if _, err := DecodeMeta(append(b, 0)); err == nil {
			t.Error("a byte after the end decodes")
		}
	}
}

func TestMetaEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*Meta){
		"over 512 bytes": func(m *Meta) { m.App, m.Service, m.Group = long(200), long(200), long(200) },
		"long text":      func(m *Meta) { m.App = long(256) },
		"not UTF-8":      func(m *Meta) { m.App = "\xff" },
		"no machine":     func(m *Meta) { m.Machine = "" },
		"no boot":        func(m *Meta) { m.Boot = "" },
		"unknown role":   func(m *Meta) { m.Role = "king" },
		"boot time":      func(m *Meta) { m.BootAt = time.Unix(0, 0) },
	} {
		m := fullMeta()
		change(&m)
		if b, err := m.Encode(); err == nil {
			t.Errorf("%s: encoded to %d bytes", name, len(b))
		}
	}
}

func long(n int) string { return strings.Repeat("x", n) }

func FuzzDecodeMeta(f *testing.F) {
	b, err := fullMeta().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Add([]byte{metaVersion, 0, 0, 0x80, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMeta(b)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatalf("decoded %+v does not encode: %v", m, err)
		}
		if !bytes.Equal(b, again) {
			t.Fatalf("two encodings of one value:\n%x\n%x", b, again)
		}
	})
}

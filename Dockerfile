# The image that the apps copy the agent from: two static binaries and the
# certificates that calls to the Machines API need, and nothing else.
#
#   docker build -t flymesh .
#
# or, to build it where Fly builds and keep it in Fly's registry, see fly.toml.

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/ ./cmd/agent ./cmd/agentctl

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/agent /agent
COPY --from=build /out/agentctl /agentctl
ENTRYPOINT ["/agent"]

# flymesh. `make demo` shows the mesh at work; `make test` runs every test.
# Everything else is for those who change it.

GO          ?= go
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X main.version=$(VERSION)

.PHONY: build demo test check bench tools clean

build: ## bin/agent and bin/agentctl, static and stripped
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/agent ./cmd/agentctl

demo: build ## a whole mesh on this machine, scaled by real load, in under 2 minutes
	bin/agentctl demo

tools: ## what the tests need besides Go: the real redis-server
	@command -v redis-server >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server redis-tools >/dev/null; \
	  else echo "redis-server is not on the PATH: its tests will be skipped"; fi; }

test: tools ## every test, with the race detector
	$(GO) test -race ./...

check: ## format, vet, staticcheck, then the tests
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "gofmt would change these files"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(MAKE) test

bench: build ## figures: policy, sketches, and the cost of an idle agent
	$(GO) test -run '^$$' -bench . -benchmem ./leader/decide ./leader/window
	bin/agentctl bench

clean:
	rm -rf bin

# flymesh. `make demo` shows the mesh at work; `make test` runs every test.
# Everything else is for those who change it.

GO          ?= go
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X main.version=$(VERSION)

# The real programs that tests run against, as Debian names them, and the
# command that says whether each is there.
PACKAGES := redis-server:redis-server redis-tools:redis-cli nodejs:node npm:npm prometheus:promtool \
            prometheus-alertmanager:amtool chromium:chromium nftables:nft iproute2:ip

.PHONY: build demo test race check seeds e2e bench n8n-test tools clean

build: ## bin/agent and bin/agentctl, static and stripped
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/agent ./cmd/agentctl

demo: build ## a whole mesh on this machine, scaled by real load, in under 2 minutes
	bin/agentctl demo

tools: ## what the tests need besides Go; without root what is missing is skipped, visibly
	@missing=; for p in $(PACKAGES); do command -v $${p#*:} >/dev/null || missing="$$missing $${p%:*}"; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing$$missing"; apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "not installed, their tests are skipped:$$missing"; fi
	@if command -v npm >/dev/null && [ ! -d probes/embeddings/testdata/node_modules/onnxruntime-node ]; then \
	  cd probes/embeddings/testdata && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null; fi

test: tools race ## every test, with the race detector

race:
	$(GO) test -race ./...

check: ## format, vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "gofmt would change these files"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

seeds: ## the long forms of the bubble tests: every crash case, 2,000 schedules of raft and of locks
	FLYMESH_MATRIX_SHARE=1 $(GO) test ./leader -run 'CrashMatrix' -timeout 30m
	FLYMESH_SEEDS=2000 $(GO) test ./leader -run 'LockHistories' -timeout 20m
	RAFTSTORE_SEEDS=2000 $(GO) test ./raftstore -run 'Chaos' -timeout 60m

e2e: ## every scenario with real processes: kills, freezes, deploys, outages, partitions (an hour)
	FLYMESH_E2E=1 $(GO) test -count=1 -v -timeout 90m ./cmd/e2e

bench: build ## figures: policy, sketches, the proxy beside nginx, a voter's memory, an idle agent, fail-over
	$(GO) test -run '^$$' -bench . -benchmem ./leader/decide ./leader/window
	FLYMESH_BENCH=1 $(GO) test -run BesideNginx -v ./agent/proxy
	FLYMESH_BENCH=1 $(GO) test -run TestMemory -v ./agent
	bin/agentctl bench

N8N ?= .cache/n8n
n8n-test: ## the n8n probe against a real n8n: installs it first (7 minutes, 3 GB)
	probes/n8n/testdata/install.sh $(N8N)
	FLYMESH_N8N=$(abspath $(N8N)) $(GO) test -run Live -v -timeout 10m ./probes/n8n

clean:
	rm -rf bin

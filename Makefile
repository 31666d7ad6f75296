# Mecha: what can be made. `make` prints this list.

GO      ?= go
BIN     := bin/mecha
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  := $(shell git rev-parse --short HEAD 2>/dev/null)
# Without grpc's debug pages nothing in the binary finds methods by name at run time, and the linker
# leaves out those that nobody calls: 13 MB.
TAGS    := grpcnotrace
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# Packages tested with the race detector: all but those that drive whole processes.
UNIT    = $(shell $(GO) list ./... | grep -v -E '/test/(bench|conformance$$|e2e|faults|harness|mesh|sdk)')
FUZZ_FOR ?= 20s
# Runs tests and says at the end which were skipped.
LOUD    := deploy/dev/loud

export CGO_ENABLED = 0

.DEFAULT_GOAL := help
.PHONY: help build run test check lint cross unit arrows e2e faults sdk conformance bench generate generated fuzz clean dev-up dev-down

help: ## print the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

build: ## build the static binary bin/mecha (and bin/daprd, the same under Dapr's name)
	$(GO) build -tags $(TAGS) -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/mecha
	@ln -sf mecha bin/daprd

run: build ## run the quickstart: two apps with their sidecars, no server to install
	@deploy/samples/quickstart/run.sh

check: lint unit arrows generated cross ## the fast gate: format, vet, linters, unit tests with race, arrows, generated files, cross-compiling

lint: ## format, vet and linters
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

unit: ## unit tests with the race detector
	CGO_ENABLED=1 $(LOUD) $(GO) test -race -timeout 10m $(UNIT)

arrows: ## the import rules of the house
	$(GO) test ./cmd/mecha -run TestArrows -count=1

generated: generate ## fail if generated files differ from what is committed
	@if [ -n "$$(git status --porcelain -- docs/reference api/mecha)" ]; then echo "generated files changed; commit them:"; git status --porcelain -- docs/reference api/mecha; exit 1; fi

generate: ## write the generated reference pages and stubs again
	$(GO) test ./runtime/settings -run Reference -count=1 -args -update >/dev/null
	$(GO) test ./runtime/policy -run TestReference -count=1 -args -update >/dev/null
	$(GO) run ./cmd/mechagen

cross: ## compile for the other supported systems
	GOOS=linux GOARCH=arm64 $(GO) build -tags $(TAGS) -o /dev/null ./cmd/mecha
	GOOS=darwin GOARCH=arm64 $(GO) build -tags $(TAGS) -o /dev/null ./cmd/mecha
	GOOS=windows GOARCH=amd64 $(GO) build -tags $(TAGS) -o /dev/null ./cmd/mecha

test: build ## everything, against real servers and SDKs; installs or starts what it needs
	deploy/dev/prepare
	MECHA_FULL=1 MECHA_BIN=$(CURDIR)/$(BIN) deploy/dev/test

e2e: build ## the black-box tests only
	MECHA_BIN=$(CURDIR)/$(BIN) $(LOUD) $(GO) test -count=1 -timeout 15m ./test/e2e/... ./test/mesh/... ./test/conformance

# One package after the other: they are not to take each other's processor time.
faults: build ## processes killed, halted and cut off under load; prints what each fault cost; FAULTS_FOR=5m for long
	MECHA_BIN=$(CURDIR)/$(BIN) FAULTS_FOR=$(FAULTS_FOR) $(LOUD) $(GO) test -count=1 -p 1 -timeout 6h -v ./test/faults/...

sdk: build ## the official SDKs as clients
	MECHA_BIN=$(CURDIR)/$(BIN) $(LOUD) $(GO) test -count=1 -timeout 20m -v ./test/sdk/...

conformance: build ## every block's suite on every backend and through each edge, and a table of how it went
	MECHA_FULL=1 MECHA_BIN=$(CURDIR)/$(BIN) $(GO) test -json -count=1 -timeout 15m ./components/... ./test/conformance | $(GO) run ./test/conformance/table

bench: build ## the cost table: CPU, latency, memory, start-up, beside direct baselines
	$(GO) run ./test/bench -mecha $(BIN)

fuzz: ## each fuzz target for FUZZ_FOR (20s)
	deploy/dev/fuzz $(FUZZ_FOR)

clean: ## remove what was built
	rm -rf bin .dev

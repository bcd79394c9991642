# Rotunda. `make` lists what can be done. `make run` and `make test` need Go, git
# and make; what else a test needs is installed by scripts/setup.sh.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LISTEN  ?= 127.0.0.1:8470
DATA    ?= ./data

.DEFAULT_GOAL := help
.PHONY: help run build test lint generate check bench vuln setup soak breaking clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The version is set here, and stamping would fail in a clone owned by somebody else.
build: ## build bin/rotunda
	@CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/rotunda ./cmd/rotunda

run: build ## build and serve on LISTEN (127.0.0.1:8470) with its state in DATA (./data)
	@exec bin/rotunda serve --data-dir '$(DATA)' --listen '$(LISTEN)' $(ARGS)

setup: ## install from Debian what the tests and checks need
	@scripts/setup.sh test check race

test: ## every test; TESTFLAGS go to go test
	@scripts/setup.sh test
	@scripts/test.sh $(TESTFLAGS)

lint: ## the linters only: vet, staticcheck, golangci-lint, buf lint
	@scripts/check.sh format vet staticcheck golangci proto

generate: ## generate Go code from proto/, and the tables of docs/ from the code
	@scripts/generate.sh

check: ## lint, and: generated code, go.mod files, scripts and links are right
	@scripts/setup.sh check
	@scripts/check.sh

bench: ## benchmarks, COUNT times (1), those that match BENCH (.)
	@scripts/setup.sh test
	@scripts/bench.sh '$(or $(COUNT),1)' '$(or $(BENCH),.)'

soak: ## simulations for SOAK (30m) and each fuzz target for FUZZ (2m)
	@scripts/setup.sh test
	@scripts/soak.sh '$(or $(SOAK),30m)' '$(or $(FUZZ),2m)'

vuln: ## govulncheck; needs its database on the network
	@tool=$$(scripts/tool.sh govulncheck) && "$$tool" ./...

breaking: ## API changes since the git ref AGAINST (main) that would break a client
	@tool=$$(scripts/tool.sh buf) && "$$tool" breaking --against '.git#ref=$(or $(AGAINST),main)'

clean: ## remove what was built here; keeps DATA
	@rm -rf bin .tools .bench

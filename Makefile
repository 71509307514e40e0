# Ropeway: `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.1.0-dev)
export CGO_ENABLED ?= 0
GO       ?= go
GOFLAGS_ := -trimpath -buildvcs=false
LDFLAGS  := -s -w -X main.version=$(VERSION)
TOOLS    := $(GO) -C test/tools tool -n

.PHONY: help
help: ## show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install what building, testing and the lab need (Debian, root)
	@./test/deps.sh

.PHONY: build
build: ## the three programs, into bin/
	@mkdir -p bin
	$(GO) build $(GOFLAGS_) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: image
image: ## one OCI archive for amd64 and arm64, without a daemon: bin/ropeway-image.tar
	$(GO) run ./internal/oci/mkimage --version $(VERSION) --out bin/ropeway-image.tar

.PHONY: demo
demo: deps build ## boot the lab, install Ropeway, play the reference scenario, take all down; IP_FAMILY=ipv6 or dual
	@bin/ropeway-lab demo $(if $(IP_FAMILY),--ip-family $(IP_FAMILY))

.PHONY: test
test: deps ## everything that guards main
	@./test/all.sh

.PHONY: test-long
test-long: deps build image ## what is too long for each change (hours); PARTS="scenarios families pods crash"
	@./test/long.sh $(PARTS)

.PHONY: bench
bench: deps build ## the benchmarks: a table, and bench/results/latest.json
	$(GO) run ./bench

.PHONY: conformance
conformance: deps build ## upstream Kubernetes end-to-end specs against the lab
	@bin/ropeway-lab conformance

.PHONY: generate
generate: ## CRDs, deepcopy, BPF objects
	$(GO) generate ./...

.PHONY: lint
lint: ## vet, formatting, staticcheck
	@./test/lint.sh

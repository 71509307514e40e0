#!/usr/bin/env bash
# Everything that guards main; `make test` and CI run this and nothing else.
# Needs root: the kernel tests and the lab make network namespaces.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
  echo "make test: run it as root: the kernel tests and the lab make network namespaces" >&2
  exit 1
fi

began=$SECONDS
step() { printf '\n=== %s (%ds)\n' "$1" $((SECONDS - began)); }

step "generated files are up to date"
./test/generated.sh

step "vet, formatting, staticcheck"
./test/lint.sh

step "unit, property, scenario and kernel tests, with the race detector"
CGO_ENABLED=1 go test -race -timeout 15m ./...

step "the same files as a release after this one leaves and finds them"
CGO_ENABLED=0 go test -tags ropeway_next ./internal/agent/laststate ./internal/cniwire ./internal/ipam/journal

step "the crash schedule, from another random start"
CGO_ENABLED=1 go test -race -count=1 -timeout 15m -v ./test/crash -crash.operations=75 -crash.most=30s

step "the programs and the image"
make --no-print-directory build
make --no-print-directory image

step "end to end, in the lab"
CGO_ENABLED=0 go test -tags e2e -count=1 -timeout 40m -v ./test/e2e

step "done"

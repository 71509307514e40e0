#!/usr/bin/env bash
# vet, formatting and staticcheck over the product's module.
set -euo pipefail
cd "$(dirname "$0")/.."

unformatted=$(gofmt -l $(git ls-files --cached --others --exclude-standard '*.go'))
if [ -n "$unformatted" ]; then
  printf 'lint: not formatted (run gofmt -w):\n%s\n' "$unformatted" >&2
  exit 1
fi
go vet ./...
# What scenario upgrade builds as the next release.
go vet -tags ropeway_next ./internal/agent/laststate ./internal/cniwire ./internal/dataplane/bpf ./internal/ipam/journal
staticcheck=$(mktemp -d)/staticcheck
trap 'rm -rf "$(dirname "$staticcheck")"' EXIT
go -C test/tools build -o "$staticcheck" honnef.co/go/tools/cmd/staticcheck
"$staticcheck" ./...

#!/usr/bin/env bash
# Fails if `make generate` would change a committed file.
set -euo pipefail
cd "$(dirname "$0")/.."

generated() { git ls-files --cached --others --exclude-standard -- '*zz_generated*' 'config/crd/*' '*_bpfel.*' '*_bpfeb.*'; }
sums() { generated | sort | xargs -r sha256sum; }

before=$(sums)
make --no-print-directory generate
after=$(sums)
if [ "$before" != "$after" ]; then
  diff <(echo "$before") <(echo "$after") >&2 || true
  echo "generated files are not up to date: run 'make generate' and commit" >&2
  exit 1
fi

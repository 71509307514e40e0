#!/usr/bin/env bash
# What is too long for each change: two to three hours, of which `make test` plays
# short forms or nothing. Parts: crash, pods, scenarios, families; all without one.
# Needs root, and `make build image` before.
set -euo pipefail
cd "$(dirname "$0")/.."

parts=${*:-scenarios families pods crash}
began=$SECONDS
failed=()
step() { # NAME COMMAND...
  printf '\n=== %s (%ds)\n' "$1" $((SECONDS - began))
  "${@:2}" || failed+=("$1")
}

# in_lab SCENARIO [FLAG of up...]: a lab of its own for each, since some take nodes away.
in_lab() {
  local rc=0
  bin/ropeway-lab --name long up "${@:2}" && bin/ropeway-lab --name long scenario "$1" || rc=$?
  bin/ropeway-lab --name long down || rc=$?
  return $rc
}

# A run that is cut short leaves no lab; the programs' own tests see to theirs.
trap 'bin/ropeway-lab --name long down; exit 130' INT TERM

for part in $parts; do
  case $part in
  scenarios)
    for round in 1 2 3; do
      step "restarts and transports, round $round" in_lab steady
      step "upgrade and downgrade, round $round" in_lab upgrade
    done
    step "transports beside kube-proxy with iptables" in_lab steady-transports --proxy-mode iptables
    step "routes change hands" in_lab vendor-routes
    step "the cloud's nodes" in_lab cloud-nodes --cloud-provider external
    ;;
  families)
    for family in ipv6 dual; do
      step "the reference scenario, $family" bin/ropeway-lab demo --ip-family $family
    done
    ;;
  pods)
    step "500 pods come and go, agents killed" env CGO_ENABLED=0 go test -tags e2e -count=1 -timeout 60m -v -run TestNothingLeaks ./test/e2e -churn 500
    step "300 pods under every fault" env CGO_ENABLED=0 go test -tags e2e -count=1 -timeout 60m -v -run TestPodsUnderEveryFault ./test/e2e -faulty-churn 300
    ;;
  crash)
    step "10,000 operations, from another random start" go test -count=1 -timeout 120m -v ./test/crash -crash.operations=10000
    ;;
  *)
    echo "test/long.sh: no part $part: there are crash, pods, scenarios, families" >&2
    exit 2
    ;;
  esac
done

printf '\n=== done (%ds)\n' $((SECONDS - began))
for name in "${failed[@]}"; do echo "FAILED: $name"; done
[ ${#failed[@]} = 0 ]

#!/usr/bin/env bash
# Installs what a Debian machine lacks for building, testing and the lab.
# Prints nothing when there is nothing to do.
set -euo pipefail

# command that must exist -> Debian package that has it
needed=(
  gcc:gcc pkg-config:pkg-config clang:clang llvm-strip:llvm
  ip:iproute2 nft:nftables iptables:iptables conntrack:conntrack tcpdump:tcpdump
  busybox:busybox-static ping:iputils-ping curl:curl ethtool:ethtool
)
export PATH=$PATH:/usr/sbin:/sbin
missing=()
for pair in "${needed[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
[ -e /usr/include/seccomp.h ] || missing+=(libseccomp-dev)
[ -e /usr/include/linux/bpf.h ] || missing+=(linux-libc-dev)
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
command -v go >/dev/null || { echo "deps: Go is not installed: see https://go.dev/doc/install (the version is in go.mod)" >&2; exit 1; }
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "deps: missing: ${missing[*]}. Install these Debian packages, or run as root on Debian." >&2
  exit 1
fi
echo "deps: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -20 "$log" >&2
  echo "deps: apt-get failed; its last lines are above" >&2
  exit 1
fi

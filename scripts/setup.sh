#!/bin/sh
# Installs the system packages the build needs, if any is missing (Debian, Ubuntu).
#   gcc g++ make  C parts of dependencies (jemalloc, zlib-ng)
#   cmake         zlib-ng, a fixed dependency of pingora-core
#   perl          OpenSSL, which Pingora builds from source
#   python3-venv  tests with the OpenAI client
#   curl          the README's examples
#   nats-server   tests of several routers
set -eu

missing=""
need() { # need PACKAGE TEST...
  package=$1
  shift
  "$@" >/dev/null 2>&1 || missing="$missing $package"
}
need build-essential sh -c 'command -v gcc && command -v g++ && command -v make'
need cmake sh -c "command -v cmake"
need perl perl -MIPC::Cmd -MFindBin -e1
need python3-venv python3 -c 'import ensurepip, venv'
need curl sh -c "command -v curl"
need nats-server sh -c "command -v nats-server || test -x /usr/sbin/nats-server"

if [ -n "$missing" ]; then
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "please install:$missing" >&2
    exit 1
  fi
  as_root=""
  [ "$(id -u)" = 0 ] || as_root=sudo
  echo "installing:$missing"
  $as_root apt-get update -qq
  # shellcheck disable=SC2086
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
  case "$missing" in
  *nats-server*) # The tests start their own; Debian's package would run one for all to reach.
    $as_root systemctl disable --now nats-server >/dev/null 2>&1 || true
    ;;
  esac
fi
if ! command -v cargo >/dev/null 2>&1; then
  echo "please install Rust (https://rustup.rs), then run this again" >&2
  exit 1
fi

#!/bin/sh
# Boots a real systemd in a container and lets inside.py test the package in it: units, reload,
# upgrade in place, crash, watchdog, socket, removal. Usage: run.sh PACKAGE.deb [TEST ...]
set -eu
# shellcheck source=tests/packaging/lib.sh
. "$(dirname "$0")/../packaging/lib.sh"

[ $# -ge 1 ] || fail "usage: run.sh PACKAGE.deb [TEST ...]"
deb=$(realpath "$1")
shift
need_base systemd-nspawn
root=$(copy_base systemd)
trap 'rm -rf "$root"' EXIT

mkdir -p "$root/test"
cp "$root_dir"/tests/systemd/*.py "$root/test/"
cp -r "$root_dir/tests/fixtures/tokenizer-qwen3-subset" "$root/test/tokenizer"
cp "$deb" "$root/test/v1.deb"
repack "$deb" 9.0-1 "$root/test/v2.deb"
cat >"$root/etc/systemd/system/test.service" <<UNIT
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -u -W ignore /test/inside.py $*
ExecStopPost=/bin/sh -c 'echo "\$EXIT_STATUS" >/test/status; journalctl -o short-precise --no-pager >/test/journal; systemctl --no-block exit 0 || systemctl --no-block poweroff'
StandardOutput=file:/test/output
StandardError=inherit
TimeoutStartSec=900
[Install]
WantedBy=default.target
UNIT
systemctl --root="$root" --quiet enable test.service 2>/dev/null

# Where PID 1 is no systemd there is nobody to register with, and no unit of ours to leave.
set -- --quiet --private-network --directory="$root" --boot
[ -d /run/systemd/system ] || set -- --register=no --keep-unit "$@"
: >"$root/test/output"
tail -f "$root/test/output" &
tail=$!
timeout --kill-after=30 1200 systemd-nspawn "$@" </dev/null >"$test_dir/console.log" 2>&1 || true
sleep 0.2
kill $tail

cp "$root/test/journal" "$test_dir/journal.log" 2>/dev/null || true
[ -s "$root/test/output" ] ||
    skip "systemd did not come up in a container here: $(tail -n 3 "$test_dir/console.log")"
[ -s "$root/test/status" ] || fail "the tests did not end; see $test_dir/console.log"
[ "$(cat "$root/test/status")" = 0 ] || fail "see above, and $test_dir/journal.log"

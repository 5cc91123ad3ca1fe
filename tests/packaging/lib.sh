# For the tests of packages: throw-away systems below target/, made from one Debian tree.
# shellcheck shell=sh

root_dir=$(cd "$(dirname "$0")/../.." && pwd)
test_dir=$root_dir/target/test-system
base_dir=$test_dir/base

skip() {
    echo "SKIP: $*"
    exit 0
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# A tree with systemd, made once: some 400 MB, a minute.
need_base() {
    [ "$(id -u)" = 0 ] || skip "needs root (a chroot)"
    for tool in dpkg-deb debootstrap unshare "$@"; do
        command -v "$tool" >/dev/null || skip "needs $tool (apt-get install debootstrap systemd-container)"
    done
    [ -e "$base_dir/.ready" ] && return
    # The program is linked against the C library of this machine.
    suite=${WARMROUTE_TEST_SUITE:-$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")}
    mirror=${WARMROUTE_TEST_MIRROR:-}
    rm -rf "$base_dir"
    mkdir -p "$test_dir"
    # shellcheck disable=SC2086
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,adduser,procps \
        "$suite" "$base_dir" $mirror >"$test_dir/debootstrap.log" 2>&1 ||
        skip "debootstrap $suite failed: $(tail -n 1 "$test_dir/debootstrap.log")"
    rm -rf "$base_dir"/var/cache/apt/* "$base_dir"/var/lib/apt/lists/*
    touch "$base_dir/.ready"
}

# copy_base NAME: prints the path of a fresh system.
copy_base() {
    rm -rf "${test_dir:?}/$1"
    cp -a --reflink=auto "$base_dir" "$test_dir/$1"
    echo "$test_dir/$1"
}

# repack DEB VERSION OUT [LINE]: the same package under another version; LINE is added to the shipped
# configuration.
repack() {
    tree=$(mktemp -d "$test_dir/repack.XXXXXX")
    dpkg-deb -R "$1" "$tree"
    sed -i "s/^Version: .*/Version: $2/" "$tree/DEBIAN/control"
    [ -z "${4:-}" ] || echo "$4" >>"$tree/etc/warmroute/config.yaml"
    dpkg-deb --root-owner-group -Zgzip -z1 -b "$tree" "$3" >/dev/null
    rm -rf "$tree"
}

#!/bin/sh
# Installs, upgrades, downgrades, removes and purges the package with dpkg, in a chroot of its own and
# without a running systemd (for that: tests/systemd). Usage: deb.sh PACKAGE.deb
set -eu
# shellcheck source=tests/packaging/lib.sh
. "$(dirname "$0")/lib.sh"

[ $# = 1 ] || fail "usage: deb.sh PACKAGE.deb (found: $*)"
deb=$(realpath "$1")
need_base
root=$(copy_base deb)
trap 'rm -rf "$root"' EXIT

cp "$deb" "$root/mnt/v1.deb"
repack "$deb" 9.0-1 "$root/mnt/v2.deb"
repack "$deb" 9.1-1 "$root/mnt/v3.deb" "# a comment of 9.1"
repack "$deb" 9.2-1 "$root/mnt/v4.deb" "# a comment of 9.2"

# No network, no processes but its own.
inside() {
    unshare --mount --pid --fork --uts --ipc --net --mount-proc="$root/proc" \
        chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"
}
# As unattended upgrades do it.
install() {
    inside dpkg --force-confdef --force-confold --install "$@" >"$test_dir/dpkg.log" 2>&1 ||
        { cat "$test_dir/dpkg.log"; fail "dpkg --install $*"; }
}
conf=/etc/warmroute/config.yaml
step() { echo "- $*"; }
is() { # is WHAT WANTED FOUND
    [ "$2" = "$3" ] || fail "$1: wanted '$2', found '$3'"
}
mode_of() { inside stat -c '%a %U:%G' "$1"; }
version() { inside dpkg-query -W -f '${Version}' warmroute; }

step "install: files, modes, owners, user"
install /mnt/v1.deb
is "the program" "755 root:root" "$(mode_of /usr/bin/warmroute)"
is "the configuration's folder" "750 root:warmroute" "$(mode_of /etc/warmroute)"
is "the configuration" "640 root:warmroute" "$(mode_of $conf)"
for file in /etc/default/warmroute /usr/lib/systemd/system/warmroute.service \
    /usr/lib/systemd/system/warmroute.socket /usr/share/man/man8/warmroute.8.gz \
    /usr/share/bash-completion/completions/warmroute \
    /usr/share/zsh/vendor-completions/_warmroute \
    /usr/share/fish/vendor_completions.d/warmroute.fish \
    /usr/share/doc/warmroute/README.md /usr/share/doc/warmroute/copyright \
    /usr/share/doc/warmroute/docs/operations.md \
    /usr/share/doc/warmroute/examples/example.yaml; do
    is "$file" "644 root:root" "$(mode_of $file)"
done
inside bash -n /usr/share/bash-completion/completions/warmroute
is "the user" "/var/lib/warmroute:/usr/sbin/nologin" "$(inside getent passwd warmroute | cut -d: -f6-)"
uid=$(inside id -u warmroute)
[ "$uid" -lt 1000 ] || fail "user $uid is no system user"
is "files of nobody" "" "$(inside find / -xdev \( -nouser -o -nogroup \) -print)"
is "enabled" "disabled" "$(inside systemctl is-enabled warmroute.service || true)"
is "socket enabled" "disabled" "$(inside systemctl is-enabled warmroute.socket || true)"

step "the shipped configuration is good, and only the service reads it"
inside runuser -u warmroute -- warmroute check --conf $conf
if inside runuser -u nobody -- cat $conf >/dev/null 2>&1; then fail "nobody reads $conf"; fi
inside warmroute check --conf /usr/share/doc/warmroute/examples/minimal.yaml

step "upgrade: a changed configuration stays, with its mode"
inside sh -c "echo '# ours' >>$conf && chmod 600 $conf && chown warmroute: $conf"
install /mnt/v2.deb
is "version" 9.0-1 "$(version)"
install /mnt/v3.deb
inside grep -q '^# ours$' $conf || fail "our line has gone"
if inside grep -q '9\.1' $conf; then fail "our configuration was replaced"; fi
inside grep -q '9\.1' $conf.dpkg-dist || fail "no $conf.dpkg-dist"
is "its mode" "600 warmroute:warmroute" "$(mode_of $conf)"

step "downgrade: the same"
install /mnt/v1.deb
is "version" "$(dpkg-deb -f "$deb" Version)" "$(version)"
inside grep -q '^# ours$' $conf || fail "our line has gone"
inside warmroute check --conf $conf

step "remove: the program goes, configuration and user stay"
inside sh -c 'install -d -o warmroute -g warmroute -m 700 /var/lib/warmroute && touch /var/lib/warmroute/x'
inside dpkg --remove warmroute >/dev/null 2>&1
[ ! -e "$root/usr/bin/warmroute" ] || fail "the program is still there"
[ ! -e "$root/usr/lib/systemd/system/warmroute.service" ] || fail "the unit is still there"
inside grep -q '^# ours$' $conf || fail "our configuration has gone"
inside getent passwd warmroute >/dev/null || fail "the user has gone"
[ -e "$root/var/lib/warmroute/x" ] || fail "the state has gone"

step "install again, purge: nothing stays"
install /mnt/v4.deb
inside systemctl is-enabled warmroute.service >/dev/null 2>&1 && fail "enabled by coming back"
inside touch /etc/warmroute/key.pem
inside dpkg --purge warmroute >/dev/null 2>&1
left=$(inside find / -xdev -name '*warmroute*' -not -path '/proc/*' -print)
is "what is left" "" "$left"
if inside getent passwd warmroute >/dev/null; then fail "the user is still there"; fi

step "an untouched configuration follows the package"
install /mnt/v1.deb
install /mnt/v3.deb
inside grep -q '9\.1' $conf || fail "not replaced"
is "its mode" "640 root:warmroute" "$(mode_of $conf)"
install /mnt/v4.deb
inside grep -q '9\.2' $conf || fail "not replaced"

step "a deleted configuration stays deleted, is told of, and comes back readable"
inside rm $conf
install /mnt/v3.deb
[ ! -e "$root$conf" ] || fail "it came back"
inside warmroute check --conf $conf 2>"$test_dir/check.log" && fail "check found nothing wrong"
grep -q config.yaml "$test_dir/check.log" || fail "check does not name the file"
inside dpkg --force-confmiss --install /mnt/v4.deb >/dev/null 2>&1
is "its mode" "640 root:warmroute" "$(mode_of $conf)"

if command -v lintian >/dev/null; then
    step "lintian"
    as_root=""
    [ "$(id -u)" != 0 ] || as_root=--allow-root
    lintian $as_root --fail-on error,warning "$deb"
else
    echo "SKIP: lintian (apt-get install lintian)"
fi
echo "ok: $(basename "$deb")"

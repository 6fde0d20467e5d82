#!/bin/bash
# Makes the root file system of a small PostgreSQL image, as a tar, from Debian's own packages.
#
#   packaging/postgres-image.sh OUT.tar
#
# apt resolves the packages against an empty system (so nothing of this host matters), downloads them and unpacks them
# into a directory: no package is installed on this host, none of their scripts run, no cluster is made. What a server
# in a container never uses stays out: perl and debconf (only Debian's cluster scripts need them), and LLVM with
# PostgreSQL's JIT (120 MB).
set -euo pipefail
out=${1:?usage: postgres-image.sh OUT.tar}
wanted=(postgresql-15 bash dash coreutils findutils grep sed procps)
unused='^(perl|perl-.*|libperl.*|debconf|ucf|ssl-cert|openssl|adduser|passwd|libllvm.*|libz3.*|lsb-base|postgresql-common|postgresql-client-common|sensible-utils|usrmerge|sysvinit-utils|init-system-helpers|netbase|logsave|mount|util-linux.*|dpkg|tar|readline-common|libjson-perl)$'

work=$(mktemp -d "${TMPDIR:-/var/tmp}/ovs-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 0755 "$work"   # apt's download user reads it
mkdir -p "$work/deb" "$work/root"
: >"$work/status"

# Both steps look at the empty system: where this host has a newer build of a library than the archive of today (an
# update that was withdrawn, a suite that is not configured any more), a download would ask for that one and fail.
empty=(-o Dir::State::status="$work/status" -o APT::Install-Recommends=false)
resolve() {
    apt-get "${empty[@]}" -s install "${wanted[@]}" 2>/dev/null |
        awk '/^Inst /{print $2}' | grep -Ev "$unused"
}
packages=$(resolve) || { apt-get update -qq && packages=$(resolve); }
chown _apt "$work/deb" 2>/dev/null || true
# shellcheck disable=SC2086  # a list of words
(cd "$work/deb" && apt-get "${empty[@]}" -qq download $packages >/dev/null)

# Debian 12 is merged-/usr: the links come first, or /bin and /lib would become directories.
mkdir -p "$work"/root/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc,dev,proc,sys,run/postgresql,tmp,var/lib/postgresql}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$work/root/$dir"; done
ln -s /run "$work/root/var/run"
for deb in "$work"/deb/*.deb; do
    # --keep-directory-symlink: packages still ship ./bin and ./lib as directories.
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/root" --keep-directory-symlink \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
        --exclude='./usr/share/info/*' --exclude='*/llvmjit*.so' --exclude='*/bitcode/*'
done
cat >"$work/root/etc/passwd" <<'PASSWD'
root:x:0:0:root:/root:/bin/bash
postgres:x:101:103:PostgreSQL:/var/lib/postgresql:/bin/bash
PASSWD
printf 'root:x:0:\npostgres:x:103:\n' >"$work/root/etc/group"
chown 101:103 "$work/root/run/postgresql" "$work/root/var/lib/postgresql"
chmod 1777 "$work/root/tmp"
tar -C "$work/root" --numeric-owner -cf "$out.part" .
mv "$out.part" "$out"

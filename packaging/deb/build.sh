#!/bin/bash
# Debian packages from the release build, with nothing but dpkg-deb:
#
#   ovs-storage         ovsd, ovsd-edge, ovs, units, default configuration, completion, man pages
#   ovs-storage-docker  ovsd-docker and its units
#
#   packaging/deb/build.sh [OUT_DIR]        (default: deb/ in the target folder)
#
# The names are not `ovs` and `ovs-docker`: Open vSwitch is known by those.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
bin=${OVS_BIN:-$target/release}
out=${1:-$target/deb}
arch=$(dpkg --print-architecture)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# Reproducible: the same commit gives the same bytes.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

depends_of() { # program...: the packages of the libraries that they load
    ldd "$@" | awk '/=> \//{print $3}' | sort -u | while read -r library; do
        # dpkg knows some files under the merged-/usr name, some under the other.
        dpkg-query -S "$library" 2>/dev/null || dpkg-query -S "${library#/usr}" 2>/dev/null || dpkg-query -S "/usr$library" 2>/dev/null
    done | sed 's/:.*//' | sort -u | paste -sd, | sed 's/,/, /g'
}

programs() { # root path program...
    local dir=$1$2
    shift 2
    install -d "$dir"
    for program in "$@"; do install -s -m 0755 "$bin/$program" "$dir/$program"; done
}

units() { # root unit...
    install -d "$1/lib/systemd/system"
    local root=$1 unit
    shift
    for unit in "$@"; do install -m 0644 "packaging/systemd/$unit" "$root/lib/systemd/system/$unit"; done
}

documents() { # root package
    install -d "$1/usr/share/doc/$2"
    install -m 0644 README.md "$1/usr/share/doc/$2/"
    gzip -9n <CHANGELOG.md >"$1/usr/share/doc/$2/changelog.gz"
    printf 'ovs\n\nLicence: Apache-2.0; on Debian systems its text is in /usr/share/common-licenses/Apache-2.0.\n' >"$1/usr/share/doc/$2/copyright"
}

scripts() { # root unit...: enabled and started at installation, restarted at an upgrade, stopped at removal
    local root=$1
    shift
    cat >"$root/DEBIAN/postinst" <<SCRIPT
#!/bin/sh
set -e
[ "\$1" = configure ] || exit 0
if command -v systemd-sysusers >/dev/null; then systemd-sysusers ovs-storage.conf || true; else getent group ovs >/dev/null || groupadd -r ovs; fi
if [ -d /run/systemd/system ]; then
    systemd-tmpfiles --create ovs-storage.conf || true
    # At boot modules-load.d does it. Without it: loop devices.
    modprobe -q nbd || true
    systemctl daemon-reload
    # \$2 is the version before: an upgrade restarts what runs, in place; clients see a pause.
    if [ -z "\$2" ]; then systemctl enable --now $* || true; else systemctl try-restart $RESTART || true; fi
fi
SCRIPT
    cat >"$root/DEBIAN/prerm" <<SCRIPT
#!/bin/sh
set -e
[ "\$1" = remove ] && [ -d /run/systemd/system ] && systemctl disable --now $* || true
SCRIPT
    cat >"$root/DEBIAN/postrm" <<'SCRIPT'
#!/bin/sh
set -e
# Never the data, not even on purge: /var/lib/ovs holds vDisks.
[ -d /run/systemd/system ] && systemctl daemon-reload || true
SCRIPT
    chmod 0755 "$root"/DEBIAN/{postinst,prerm,postrm}
}

control() { # root package depends description
    cat >"$1/DEBIAN/control" <<CONTROL
Package: $2
Version: $version
Architecture: $arch
Maintainer: the ovs project <ovs@localhost>
Installed-Size: $(du -sk "$1" | cut -f1)
Depends: $3
Section: admin
Priority: optional
Description: $4
CONTROL
}

pack() { # root
    (cd "$1" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
    dpkg-deb --root-owner-group -Zxz -b "$1" "$out" | sed "s/^dpkg-deb: //"
}

# --- ovs-storage
root=$work/ovs-storage
install -d "$root/DEBIAN"
programs "$root" /usr/sbin ovsd ovsd-edge
programs "$root" /usr/bin ovs
units "$root" ovs.slice ovsd.service ovsd-edge.service
install -D -m 0644 packaging/ovsd.yaml "$root/etc/ovs/ovsd.yaml"
install -d -m 0700 "$root/etc/ovs/secrets" "$root/etc/ovs/secrets/keys" "$root/etc/ovs/secrets/stores"
echo /etc/ovs/ovsd.yaml >"$root/DEBIAN/conffiles"
install -D -m 0644 packaging/ovs.sysusers "$root/usr/lib/sysusers.d/ovs-storage.conf"
install -D -m 0644 packaging/ovs.tmpfiles "$root/usr/lib/tmpfiles.d/ovs-storage.conf"
install -D -m 0644 packaging/ovs.modules "$root/usr/lib/modules-load.d/ovs-storage.conf"
"$bin/ovs" generate completion "$work/completion"
"$bin/ovs" generate man "$work/man"
for file in "$work"/completion/*; do
    case $(basename "$file") in
        _ovs) install -D -m 0644 "$file" "$root/usr/share/zsh/vendor-completions/_ovs" ;;
        *.fish) install -D -m 0644 "$file" "$root/usr/share/fish/vendor_completions.d/ovs.fish" ;;
        *) install -D -m 0644 "$file" "$root/usr/share/bash-completion/completions/ovs" ;;
    esac
done
install -d "$root/usr/share/man/man1"
for page in "$work"/man/*.1; do gzip -9n <"$page" >"$root/usr/share/man/man1/$(basename "$page").gz"; done
documents "$root" ovs-storage
# ovsd-edge is not restarted by an upgrade: the mounts of running containers are in it.
RESTART=ovsd.service scripts "$root" ovsd.service ovsd-edge.service
control "$root" ovs-storage "$(depends_of "$bin/ovsd" "$bin/ovsd-edge" "$bin/ovs"), fuse3" "block storage for virtual machines and containers
 ovsd turns storage that cannot run a virtual machine into fast block storage:
 thin disks, snapshots, clones. Disks are reached over NBD, as files (ovsd-edge),
 and through plugins such as ovs-storage-docker."
pack "$root"

# --- ovs-storage-docker
root=$work/ovs-storage-docker
install -d "$root/DEBIAN"
programs "$root" /usr/sbin ovsd-docker
mapfile -t docker_units < <(cd packaging/systemd && ls ovsd-docker.* 2>/dev/null)
units "$root" "${docker_units[@]}"
documents "$root" ovs-storage-docker
RESTART=ovsd-docker.service scripts "$root" "${docker_units[@]}"
control "$root" ovs-storage-docker "ovs-storage (= $version), $(depends_of "$bin/ovsd-docker"), e2fsprogs, xfsprogs, util-linux, mount" "Docker volumes on ovs
 The volume driver ovs: docker run --volume-driver=ovs -v data:/data ..."
pack "$root"

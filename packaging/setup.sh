#!/bin/bash
# Installs what this repository needs from Debian 12's own package sources.
#
#   packaging/setup.sh [build] [demo] [test] [vm] [ceph] [engines] [fuzz] [coverage] [mutants]     (the first three when none is named)
#
# Every make target calls it. With nothing to do it asks dpkg once (20 ms) and says nothing. No service is started by an
# installation, and none that runs is touched; a version already there is never downgraded.
set -euo pipefail
cd "$(dirname "$0")/.."

rust_min=1.95
cache=${OVS_CACHE:-/var/cache/ovs-build}
declare -A packages=(
    # clang is for bindgen, which reads the headers of Debian's RocksDB.
    [build]="gcc g++ make pkg-config librocksdb-dev clang-14 libclang-14-dev"
    [demo]="docker.io iptables e2fsprogs xfsprogs fuse3 util-linux mount procps"
    [test]="docker.io iptables e2fsprogs xfsprogs fuse3 util-linux mount procps
            fio libnbd-bin python3-libnbd openssl curl nbdkit qemu-utils strace jq python3 python3-pytest python3-pytest-timeout python3-venv"
    # A guest with a kernel of Debian's, for what the kernel of this machine may lack (integration/guest.py).
    [vm]="cpio kmod busybox-static curl e2fsprogs"
    # A peer for tests/bench/objects.py: a one-node cluster on loopback.
    [ceph]="ceph-mon ceph-osd ceph-common"
    # Object stores for integration/test_engines.py, on loopback; Azurite is installed apart.
    [engines]="ceph-mon ceph-osd ceph-common radosgw
               swift-proxy swift-account swift-container swift-object memcached attr curl python3 python3-pytest python3-pytest-timeout"
    [fuzz]=g++
    [coverage]="gcc jq"
    [mutants]="gcc jq"
)

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

missing() { # package...: those of them that are not installed
    dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null | awk '$2=="installed"{print $1}' |
        sort -u | comm -13 - <(printf '%s\n' "$@" | sort -u)
}

install_packages() {
    local wanted=() policy=/usr/sbin/policy-rc.d
    mapfile -t wanted < <(missing "$@")
    [ ${#wanted[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "needs root to install: ${wanted[*]}"
    command -v apt-get >/dev/null || fail "this is for Debian 12; install by hand what corresponds to: ${wanted[*]}"
    echo "setup: installing ${wanted[*]}"
    if [ ! -e "$policy" ]; then
        # Debian's way to say that an installation starts no daemon; gone again afterwards.
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 0755 "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
    # The lists may be absent or old: try with what is there, then with fresh ones.
    "${apt[@]}" install -y --no-install-recommends "${wanted[@]}" >/dev/null 2>&1 || {
        "${apt[@]}" update
        "${apt[@]}" install -y --no-install-recommends "${wanted[@]}" >/dev/null
    }
    mapfile -t wanted < <(missing "$@")
    [ ${#wanted[@]} -eq 0 ] || fail "still not installed: ${wanted[*]}"
}

check_rust() {
    local have
    have=$(cargo --version 2>/dev/null | awk '{print $2}') || true
    [ -n "$have" ] || fail "cargo is not on the PATH. Rust $rust_min or newer is needed, and Debian 12's own is too old (1.63)." \
        "Install it with rustup (https://rustup.rs), open a new shell, and run this again."
    [ "$(printf '%s\n%s\n' "$rust_min" "$have" | sort -V | head -1)" = "$rust_min" ] ||
        fail "Rust $have is too old: $rust_min or newer is needed. With rustup: rustup update stable"
}

install_fsx() { # the file system exerciser; kept outside the repository
    local version=0.3.2
    [ -x "$cache/tools/bin/fsx" ] && grep -q "fsx $version " "$cache/tools/.crates.toml" 2>/dev/null && return 0
    echo "setup: building fsx $version (once)"
    CARGO_TARGET_DIR=$cache/fsx-target cargo install -q fsx --version "$version" --locked --root "$cache/tools"
    rm -rf "$cache/fsx-target"
}

install_qemu() { # from where the machine's other parts of QEMU are, so that none of them is replaced
    local dir=$cache/backports apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
    command -v qemu-system-x86_64 >/dev/null && return 0
    case $(dpkg-query -W -f '${Version}\n' qemu-utils qemu-system-common 2>/dev/null) in
        *bpo12*) ;;
        *)
            install_packages qemu-system-x86
            return
            ;;
    esac
    [ "$(id -u)" = 0 ] || fail "needs root to install: qemu-system-x86"
    echo "setup: installing qemu-system-x86 from bookworm-backports"
    mkdir -p "$dir/lists/partial"
    # Lists of its own, from where the machine's are: those are left as they are.
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | head -1)
    [ -n "$mirror" ] || fail "apt knows no source of bookworm"
    printf "deb $mirror %s main\\n" bookworm bookworm-backports >"$dir/sources.list"
    apt+=(-o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$dir/lists")
    "${apt[@]}" update
    "${apt[@]}" install -y --no-install-recommends -t bookworm-backports qemu-system-x86 >/dev/null
}

fetch_kernel() { # the cloud kernel of Debian 12, unpacked and not installed: $cache/kernel/{boot,lib/modules}
    local image apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
    [ -e "$cache/kernel/complete" ] && return 0
    newest() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/{print $2; exit}'; }
    [ -n "$(newest)" ] || "${apt[@]}" update
    image=$(newest)
    [ -n "$image" ] || fail "no package linux-image-cloud-amd64"
    echo "setup: fetching $image"
    rm -rf "$cache/kernel"
    mkdir -p "$cache/kernel"
    (
        cd "$cache/kernel"
        "${apt[@]}" download "$image" 2>/dev/null || { "${apt[@]}" update && "${apt[@]}" download "$image"; }
        dpkg -x linux-image-*.deb . && rm linux-image-*.deb
    )
    touch "$cache/kernel/complete"
}

install_schemathesis() { # requests out of an OpenAPI document; Debian has none
    local version=4.32.5
    [ -x "$cache/schemathesis/bin/st" ] && [ "$(cat "$cache/schemathesis/version" 2>/dev/null)" = $version ] && return 0
    echo "setup: installing schemathesis $version (once)"
    rm -rf "$cache/schemathesis"
    /usr/bin/python3 -m venv "$cache/schemathesis"
    "$cache/schemathesis/bin/pip" install -q --disable-pip-version-check "schemathesis==$version"
    echo $version >"$cache/schemathesis/version"
}

install_fuzz() { # cargo-fuzz, beside fsx; a toolchain is its owner's business
    local version=0.13.2
    command -v rustup >/dev/null && rustup toolchain list | grep -q '^nightly' ||
        fail "fuzzing needs a nightly toolchain beside the stable one. With rustup: rustup toolchain install nightly --profile minimal"
    grep -q "cargo-fuzz $version " "$cache/tools/.crates.toml" 2>/dev/null && return 0
    echo "setup: building cargo-fuzz $version (once)"
    CARGO_TARGET_DIR=$cache/cargo-fuzz-target cargo install -q cargo-fuzz --version "$version" --locked --root "$cache/tools"
    rm -rf "$cache/cargo-fuzz-target"
}

install_azurite() { # a server of Azure's blobs; Debian has none. The last version for Node.js 18, which Debian has
    local version=3.35.0
    [ "$(cat "$cache/azurite/version" 2>/dev/null)" = $version ] && return 0
    command -v npm >/dev/null || install_packages nodejs npm
    echo "setup: installing azurite $version (once, 190 MB)"
    rm -rf "$cache/azurite"
    mkdir -p "$cache/azurite"
    # Nothing of what is installed is run by that.
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$cache/azurite" "azurite@$version"
    echo $version >"$cache/azurite/version"
}

install_coverage() { # cargo-tarpaulin, without its uploads; its ptrace engine needs no part of LLVM
    local version=0.37.5
    grep -q "cargo-tarpaulin $version " "$cache/tools/.crates.toml" 2>/dev/null && return 0
    echo "setup: building cargo-tarpaulin $version (once)"
    CARGO_TARGET_DIR=$cache/tarpaulin-target cargo install -q cargo-tarpaulin --version "$version" --locked \
        --no-default-features --root "$cache/tools"
    rm -rf "$cache/tarpaulin-target"
}

install_mutants() {
    local version=27.1.0
    grep -q "cargo-mutants $version " "$cache/tools/.crates.toml" 2>/dev/null && return 0
    echo "setup: building cargo-mutants $version (once)"
    CARGO_TARGET_DIR=$cache/mutants-target cargo install -q cargo-mutants --version "$version" --locked --root "$cache/tools"
    rm -rf "$cache/mutants-target"
}

[ $# -gt 0 ] || set -- build demo test
names=()
for set in "$@"; do
    [ -n "${packages[$set]:-}" ] || fail "no such set: $set (build, demo, test, vm, ceph, engines, fuzz, coverage, mutants)"
    # shellcheck disable=SC2206  # words
    names+=(${packages[$set]})
done
install_packages "${names[@]}"
case " $* " in *" build "*) check_rust ;; esac
case " $* " in
    *" test "*)
        install_fsx
        install_schemathesis
        ;;
esac
case " $* " in
    *" vm "*)
        install_qemu
        fetch_kernel
        ;;
esac
case " $* " in *" engines "*) install_azurite ;; esac
case " $* " in *" fuzz "*) install_fuzz ;; esac
case " $* " in *" coverage "*) install_coverage ;; esac
case " $* " in *" mutants "*) install_mutants ;; esac

#!/bin/bash
# Installs what this repository needs from Debian 12's own package sources.
#
#   packaging/setup.sh [build] [demo] [test] [fuzz]      (the first three when none is named)
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
            fio libnbd-bin nbdkit qemu-utils strace jq python3 python3-pytest python3-pytest-timeout python3-venv"
    [fuzz]=g++
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

install_fsx() { # the file system exerciser, from crates.io; kept outside the repository
    local version=0.3.2
    [ -x "$cache/tools/bin/fsx" ] && grep -q "fsx $version " "$cache/tools/.crates.toml" 2>/dev/null && return 0
    echo "setup: building fsx $version (once)"
    CARGO_TARGET_DIR=$cache/fsx-target cargo install -q fsx --version "$version" --locked --root "$cache/tools"
    rm -rf "$cache/fsx-target"
}

install_schemathesis() { # requests out of an OpenAPI document, from PyPI; Debian has none
    local version=4.32.5
    [ -x "$cache/schemathesis/bin/st" ] && [ "$(cat "$cache/schemathesis/version" 2>/dev/null)" = $version ] && return 0
    echo "setup: installing schemathesis $version (once)"
    rm -rf "$cache/schemathesis"
    /usr/bin/python3 -m venv "$cache/schemathesis"
    "$cache/schemathesis/bin/pip" install -q --disable-pip-version-check "schemathesis==$version"
    echo $version >"$cache/schemathesis/version"
}

install_fuzz() { # cargo-fuzz, from crates.io, beside fsx; a toolchain is its owner's business
    local version=0.13.2
    command -v rustup >/dev/null && rustup toolchain list | grep -q '^nightly' ||
        fail "fuzzing needs a nightly toolchain beside the stable one. With rustup: rustup toolchain install nightly --profile minimal"
    grep -q "cargo-fuzz $version " "$cache/tools/.crates.toml" 2>/dev/null && return 0
    echo "setup: building cargo-fuzz $version (once)"
    CARGO_TARGET_DIR=$cache/cargo-fuzz-target cargo install -q cargo-fuzz --version "$version" --locked --root "$cache/tools"
    rm -rf "$cache/cargo-fuzz-target"
}

[ $# -gt 0 ] || set -- build demo test
names=()
for set in "$@"; do
    [ -n "${packages[$set]:-}" ] || fail "no such set: $set (build, demo, test, fuzz)"
    # shellcheck disable=SC2206  # words
    names+=(${packages[$set]})
done
install_packages "${names[@]}"
case " $* " in *" build "*) check_rust ;; esac
case " $* " in *" test "*) install_fsx; install_schemathesis ;; esac
case " $* " in *" fuzz "*) install_fuzz ;; esac

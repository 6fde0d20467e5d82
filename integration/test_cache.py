"""The read cache: what it answers, what of it is whose, and what becomes of it when its SSD does not work."""

import os
import pathlib
import re

import pytest

from nbd_client import Connection
from stack import MIB, SMALL_BUFFER, Refused, wait_until
from test_cli import metrics

# Everything leaves for the backend at once.
QUICK = SMALL_BUFFER + "destage:\n  after: 100ms\n  size: 4MiB\n"
MEMORY = QUICK + "cache:\n  memory: 8MiB\n"


def block(number, seed):
    return bytes([seed, number % 251, number // 251 % 256]) * 1365 + bytes([seed])


def fill(ovs, name, size, seed):
    """A vDisk whose blocks are all different, on the backend."""
    ovs.create(name, f"{size // MIB}MiB")
    with Connection(ovs.nbd_socket, f"default/{name}") as connection:
        for start in range(0, size // 4096, 256):
            connection.write(start * 4096, b"".join(block(number, seed) for number in range(start, start + 256)))
    wait_until("it is on the backend", lambda: ovs.ovs("vdisk", "stats", f"default/{name}")["buffered_bytes"] == 0)


def read(ovs, name, size, seed, step=1):
    with Connection(ovs.nbd_socket, f"default/{name}") as connection:
        for number in range(0, size // 4096, step):
            assert connection.read(number * 4096, 4096) == block(number, seed), f"block {number} of {name}"


def value(ovs, metric, **labels):
    """A sample's value; None when there is none."""
    wanted = "".join(rf'(?=[^}}]*{key}="{text}")' for key, text in labels.items())
    labels_of = rf"\{{{wanted}[^}}]*\}}" if labels else ""
    found = re.search(rf"^{metric}{labels_of} (\S+)$", metrics(ovs), re.MULTILINE)
    return float(found[1]) if found else None


def alarm(ovs):
    return next(alarm for alarm in ovs.ovs("status")["alarms"] if alarm["kind"] == "cache_quotas")


def with_ssd(directory, size="64MiB"):
    return QUICK + f"cache:\n  memory: 2MiB\n  ssd: {{path: {directory}, size: {size}}}\n"


def cache_fd(ovs):
    """The file of its SSD, which has no name."""
    fds = pathlib.Path(f"/proc/{ovs.ovsd.pid}/fd")
    return next((fd for fd in fds.iterdir() if re.search(r"/ssd/ovs-read-cache \(deleted\)$", os.readlink(fd))), None)


def test_what_was_read_is_read_again_from_memory(make_stack):
    ovs = make_stack(MEMORY).start()
    fill(ovs, "v", 4 * MIB, 1)
    read(ovs, "v", 4 * MIB, 1)
    assert value(ovs, "ovs_vdisk_cache_misses_total", vdisk="v") == 1024
    read(ovs, "v", 4 * MIB, 1)
    assert value(ovs, "ovs_vdisk_cache_hits_total", vdisk="v") == 1024
    assert value(ovs, "ovs_vdisk_cache_bytes", vdisk="v") == 4 * MIB == value(ovs, "ovs_cache_bytes", tier="memory")
    stats = ovs.ovs("vdisk", "stats", "default/v")["cache"]
    assert stats == {"mode": "read", "used_bytes": 4 * MIB, "hit_count": 1024, "miss_count": 1024}
    # Its clone finds the same.
    ovs.ovs("vdisk", "clone", "default/v", "default/w")
    read(ovs, "w", 4 * MIB, 1)
    assert value(ovs, "ovs_vdisk_cache_misses_total", vdisk="w") == 0
    ovs.ovs("vdisk", "cache", "default/v", "--cache-mode", "none")
    read(ovs, "v", 4 * MIB, 1)
    assert value(ovs, "ovs_vdisk_cache_hits_total", vdisk="v") == 1024


def test_the_same_content_is_held_once(make_stack):
    ovs = make_stack(MEMORY).start()
    shown = ovs.ovs("vpool", "cache", "default", "--cache-dedup", "content")
    assert shown["cache"] == {"mode": "read", "dedup": "content"}
    for name in ("one", "two"):
        fill(ovs, name, 2 * MIB, 9)
        read(ovs, name, 2 * MIB, 9)
    assert value(ovs, "ovs_cache_bytes", tier="memory") == 2 * MIB
    assert value(ovs, "ovs_cache_entries") == 1024 and value(ovs, "ovs_cache_shared_total") == 512


def test_a_noisy_neighbour_does_not_take_what_is_within_a_quota(make_stack):
    ovs = make_stack(MEMORY).start()
    fill(ovs, "quiet", 4 * MIB, 1)
    fill(ovs, "noisy", 32 * MIB, 2)
    ovs.ovs("vdisk", "cache", "default/quiet", "--cache-quota", "4MiB")
    read(ovs, "quiet", 4 * MIB, 1)
    for _ in range(2):
        read(ovs, "noisy", 32 * MIB, 2)
    before = value(ovs, "ovs_vdisk_cache_misses_total", vdisk="quiet")
    read(ovs, "quiet", 4 * MIB, 1)
    assert value(ovs, "ovs_vdisk_cache_misses_total", vdisk="quiet") == before
    assert value(ovs, "ovs_vdisk_cache_bytes", vdisk="quiet") == 4 * MIB
    assert value(ovs, "ovs_vdisk_cache_bytes", vdisk="noisy") == 4 * MIB
    assert value(ovs, "ovs_cache_evicted_total") > 8000


def test_quotas_are_kept_shown_and_warned_of(make_stack):
    ovs = make_stack(MEMORY).start()
    shown = ovs.create("v", "64MiB", "--cache-quota", "6MiB", "--cache-mode", "read-write")
    assert shown["cache"] == {"mode": "read_write", "quota_bytes": 6 * MIB}
    for bad, says in [(["--cache-quota", "100"], "4096 (4 KiB)"), (["--cache-mode", "write"], "read-write"), (["--cache-quota", "none"], "default")]:
        with pytest.raises(Refused) as error:
            ovs.ovs("vdisk", "cache", "default/v", *bad)
        assert says in error.value.stderr, error.value
    wait_until("an alarm of 75 %", lambda: alarm(ovs)["used_percent"] == 75)
    ovs.ovsd.kill9()
    ovs.restart()
    assert ovs.ovs("vdisk", "cache", "default/v") == {"mode": "read_write", "quota_bytes": 6 * MIB}
    ovs.ovs("vpool", "cache", "default", "--cache-quota", "5MiB")
    ovs.create("w", "64MiB")
    wait_until("an alarm of 137 %", lambda: alarm(ovs)["used_percent"] == 137)
    status = ovs.ovs("status")
    assert status["cache"]["quotas_bytes"] == 11 * MIB
    assert ovs.ovs("vdisk", "stats", "default/w")["cache"]["quota_bytes"] == 5 * MIB
    assert value(ovs, "ovs_vdisk_cache_quota_bytes", vdisk="w") == 5 * MIB
    assert "the quotas of vDisks together take most of the read cache, or more" in ovs.ovsd.log.read_text()


def test_an_ssd_holds_what_memory_does_not(make_stack):
    ovs = make_stack()
    ssd = ovs.root / "ssd"
    ssd.mkdir()
    ovs.configure(with_ssd(ssd))
    ovs.start()
    fill(ovs, "v", 16 * MIB, 1)
    # No faster than the SSD takes it.
    for _ in range(4):
        read(ovs, "v", 16 * MIB, 1)
    hits = value(ovs, "ovs_cache_hits_total", tier="ssd")
    assert hits > 1000 and value(ovs, "ovs_cache_damaged_total", tier="ssd") == 0
    assert value(ovs, "ovs_cache_bytes", tier="memory") <= 2 * MIB < value(ovs, "ovs_cache_bytes", tier="ssd")
    fd = cache_fd(ovs)
    assert fd and os.stat(fd).st_mode & 0o777 == 0o600 and list(ssd.iterdir()) == []
    # Somebody damages what is there.
    with open(fd, "r+b", buffering=0) as file:
        for offset in range(0, 16 * MIB, 65536):
            os.pwrite(file.fileno(), b"damaged", offset)
    read(ovs, "v", 16 * MIB, 1)
    assert value(ovs, "ovs_cache_damaged_total", tier="ssd") > 100
    # It is cut off: memory goes on alone.
    os.truncate(fd, MIB)
    read(ovs, "v", 16 * MIB, 1)
    assert value(ovs, "ovs_cache_hits_total", tier="ssd") is None
    assert ovs.ovsd.log.read_text().count("the SSD of the read cache is not used any more") == 1
    wait_until("an alarm", lambda: any(alarm["subject"] == "read cache" for alarm in ovs.ovs("status")["alarms"]))
    read(ovs, "v", MIB, 1)
    read(ovs, "v", MIB, 1)
    # Nothing of it is left after a death, and the next one begins anew.
    ovs.ovsd.kill9()
    assert list(ssd.iterdir()) == []
    ovs.restart()
    assert value(ovs, "ovs_cache_entries") == 0 and cache_fd(ovs)
    read(ovs, "v", 16 * MIB, 1)


def test_an_ssd_without_room_is_not_used(make_stack):
    ovs = make_stack()
    for directory, size in [(ovs.root / "ssd", "8TiB"), ("/proc/ssd", "64MiB")]:
        ovs.ovsd.stop()
        ovs.configure(with_ssd(directory, size))
        ovs.restart()
        assert "the SSD of the read cache cannot be used" in ovs.ovsd.log.read_text()
        assert ovs.ovs("status")["cache"]["has_ssd"] is False
    fill(ovs, "v", MIB, 1)
    read(ovs, "v", MIB, 1)
    read(ovs, "v", MIB, 1)
    assert value(ovs, "ovs_cache_hits_total", tier="memory") == 256


def test_without_a_cache_nothing_is_counted(ovs):
    ovs.create("v", "64MiB", "--cache-quota", "1GiB")
    assert "cache" not in ovs.ovs("vdisk", "stats", "default/v") and "cache" not in ovs.ovs("status")
    assert "ovs_cache" not in metrics(ovs)

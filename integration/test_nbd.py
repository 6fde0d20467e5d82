"""The NBD door with the real clients: libnbd's tools, QEMU's tools, fio, and a client of our own for what those hide."""

import json
import os
import random
import statistics
import threading
import time

import pytest

import nbd_client
from nbd_client import EINVAL, ENOSPC, FUA, READ, TRIM, ZEROES, Connection, Failed
from stack import MIB, Refused, run


def nbdinfo(*args):
    return json.loads(run("nbdinfo", "--json", *args).stdout)


def qemu_io(uri, *commands, check=True):
    """Commands for qemu-io; it reports a refused command in its text, and since QEMU 5 by its exit code too."""
    return run("qemu-io", "-f", "raw", *[word for command in commands for word in ("-c", command)], uri, check=check)


def fio(uri, *args, timeout=180):
    """A fio job over NBD that verifies what it wrote; its report."""
    done = run("fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", "--thread", "--output-format=json",
               "--randrepeat=0", *args, timeout=timeout)
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    assert job["error"] == 0, done.stdout
    return job


VERIFY = ("--verify=crc32c", "--verify_fatal=1", "--do_verify=1")


def test_info_names_size_and_abilities(ovs):
    ovs.create("v", "64MiB")
    info = nbdinfo(ovs.uri("v"))["exports"][0]
    assert info["export-size"] == 64 * MIB
    assert not info["is_read_only"]
    for ability in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_cache"):
        assert info[ability] is True, ability
    assert "base:allocation" in info["contexts"]
    assert info["block_size_minimum"] in (1, 512) and info["block_size_preferred"] >= 4096
    for ability in ("write", "flush", "fua", "trim", "zero", "cache", "multi-conn", "df", "connect"):
        assert run("nbdinfo", "--can", ability, ovs.uri("v"), check=False).returncode == 0, ability


def test_list_shows_vdisks_of_the_common_socket(ovs):
    ovs.create("one", "8MiB")
    ovs.create("two", "16MiB")
    listed = nbdinfo("--list", f"nbd+unix:///?socket={ovs.nbd_socket}")["exports"]
    sizes = {export["export-name"]: export["export-size"] for export in listed}
    assert sizes["default/one"] == 8 * MIB and sizes["default/two"] == 16 * MIB


def test_own_socket_serves_one_vdisk_by_the_empty_name(ovs):
    shown = ovs.create("v", "8MiB")
    ovs.create("other", "16MiB")
    own = f"nbd+unix:///?socket={shown['nbd_socket']}"
    assert nbdinfo(own)["exports"][0]["export-size"] == 8 * MIB
    refused = run("nbdinfo", f"nbd+unix:///default/other?socket={shown['nbd_socket']}", check=False)
    assert refused.returncode != 0, "another vDisk is reachable through this vDisk's socket"


def test_map_of_a_thin_vdisk(ovs):
    ovs.create("v", "16MiB")
    qemu_io(ovs.uri("v"), "write -P 1 0 1M", "write -P 2 4M 512k", "flush")

    def extents():
        mapped = json.loads(run("nbdinfo", "--map", "--json", ovs.uri("v")).stdout)
        merged = []
        for extent in mapped:
            if merged and merged[-1][2] == extent["type"] and merged[-1][0] + merged[-1][1] == extent["offset"]:
                merged[-1][1] += extent["length"]
            else:
                merged.append([extent["offset"], extent["length"], extent["type"]])
        return [tuple(extent) for extent in merged]

    assert extents() == [
        (0, MIB, 0), (MIB, 3 * MIB, 3), (4 * MIB, MIB // 2, 0), (4 * MIB + MIB // 2, 11 * MIB + MIB // 2, 3)]
    qemu_io(ovs.uri("v"), "discard 0 1M")
    assert extents()[0] == (0, 4 * MIB, 3)


@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy_round_trip(ovs, connections, tmp_path):
    ovs.create("v", "96MiB")
    source, back = tmp_path / "source", tmp_path / "back"
    with open(source, "wb") as file:
        file.truncate(96 * MIB)
        for at in (0, 3 * MIB + 4096, 17 * MIB, 95 * MIB):
            file.seek(at)
            file.write(os.urandom(MIB))
        file.seek(40 * MIB)
        file.write(os.urandom(24 * MIB))
    run("nbdcopy", f"--connections={connections}", "--flush", source, ovs.uri("v"))
    run("nbdcopy", f"--connections={connections}", ovs.uri("v"), back)
    run("cmp", source, back)
    assert os.stat(back).st_blocks * 512 < 40 * MIB, "holes came back as data"


def test_qemu_io_fua_discard_zeroes(ovs):
    ovs.create("v", "64MiB")
    uri = ovs.uri("v")
    qemu_io(uri, "write -P 0xa1 0 1M", "write -f -P 0xa2 1M 64k", "write -P 0xa3 2M 4k", "flush")
    qemu_io(uri, "read -P 0xa1 0 1M", "read -P 0xa2 1M 64k", "read -P 0xa3 2M 4k", "read -P 0 3M 1M")
    qemu_io(uri, "discard 0 512k", "write -z 512k 64k", "write -z -u 576k 64k")
    qemu_io(uri, "read -P 0 0 640k", "read -P 0xa1 640k 384k")
    # A ragged edge is read-modify-write, whatever the command.
    qemu_io(uri, "write -P 7 8M 64k", "write -z 8389120 1k", "discard 8400000 10000")
    data = Connection(ovs.nbd_socket, "default/v").read(8 * MIB, 65536)
    assert data[512:512 + 1024] == bytes(1024) and data[:512] == b"\7" * 512 and data[1536:2048] == b"\7" * 512


def test_out_of_range_is_an_error_and_nothing_more(ovs):
    ovs.create("v", "1MiB")
    assert qemu_io(ovs.uri("v"), "write 1M 4k", check=False).returncode != 0
    with Connection(ovs.nbd_socket, "default/v") as connection:
        connection.write(MIB - 4096, b"x" * 4096)
        for command, offset, length, errno in (
            (READ, MIB, 1, EINVAL), (READ, MIB - 1, 2, EINVAL), (READ, (1 << 64) - 4096, 8192, EINVAL),
            (TRIM, MIB, 4096, EINVAL), (ZEROES, MIB - 4096, 8192, ENOSPC),
        ):
            with pytest.raises(Failed) as refused:
                connection.call(command, offset, length)
            assert refused.value.errno in (errno, EINVAL, ENOSPC), (command, offset, length)
        with pytest.raises(Failed) as refused:
            connection.write(MIB - 2048, b"y" * 4096)
        assert refused.value.errno in (ENOSPC, EINVAL)
        assert connection.read(MIB - 4096, 4096) == b"x" * 4096, "a refused write left a trace"


def test_qemu_img_reads_and_fills_through_the_vdisks_own_socket(ovs, tmp_path):
    shown = ovs.create("v", "32MiB")
    own = f"nbd+unix:///?socket={shown['nbd_socket']}"
    assert json.loads(run("qemu-img", "info", "--output=json", own).stdout)["virtual-size"] == 32 * MIB
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(os.urandom(8 * MIB) + bytes(16 * MIB) + os.urandom(8 * MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow2, own)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, own)
    assert ovs.show("v")["allocated_bytes"] < 24 * MIB, "zeros were stored"


@pytest.mark.parametrize("job", [
    ("--rw=randwrite", "--bs=4k", "--iodepth=32"),
    ("--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=1", "--iodepth=1"),
    ("--rw=randrw", "--bs=16k", "--iodepth=8", "--verify_backlog=64"),
    ("--rw=write", "--bs=1M", "--iodepth=4"),
], ids=["random-4k", "ragged", "mixed", "sequential-1M"])
def test_fio_verify(ovs, job):
    ovs.create("v", "192MiB")
    fio(ovs.uri("v"), "--size=192M", "--io_size=96M", *VERIFY, *job)


@pytest.mark.timeout(180)
def test_fio_verify_with_snapshots_meanwhile(ovs):
    """Snapshots seal the map under the writer; nothing it wrote may change, before or after."""
    ovs.create("v", "128MiB")
    stop, errors = threading.Event(), []

    def snapshots():
        count = 0
        while not stop.wait(0.3):
            try:
                ovs.ovs("snapshot", "create", f"default/v@s{count}")
                count += 1
            except Refused as error:
                errors.append(error)
                return

    thread = threading.Thread(target=snapshots)
    thread.start()
    try:
        fio(ovs.uri("v"), "--size=128M", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--verify_backlog=1024", *VERIFY,
            "--rate_iops=12000")
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert len(ovs.ovs("snapshot", "list", "default/v")) > 0


def test_flush_on_one_connection_covers_writes_of_another(ovs):
    """What multi-conn promises."""
    ovs.create("v", "8MiB")
    with Connection(ovs.nbd_socket, "default/v") as one, Connection(ovs.nbd_socket, "default/v") as two:
        one.write(0, b"a" * 4096)
        two.flush()
        assert two.read(0, 4096) == b"a" * 4096
        two.write(4096, b"b" * 4096, FUA)
        assert one.read(4096, 4096) == b"b" * 4096


def test_random_operations_equal_a_model(ovs, chance):
    """Reads, writes, zeroes and discards of any offset and length against a byte array."""
    size = 4 * MIB
    ovs.create("v", str(size))
    model = bytearray(size)
    with Connection(ovs.nbd_socket, "default/v") as connection:
        for step in range(1500):
            offset = chance.randrange(size)
            length = min(chance.choice((1, 511, 512, 4095, 4096, 4097, 65536, chance.randrange(1, 200000))), size - offset)
            action = chance.choice(("read", "write", "write", "zeroes", "trim"))
            if action == "write":
                data = chance.randbytes(length)
                connection.write(offset, data, chance.choice((0, 0, 0, FUA)))
                model[offset:offset + length] = data
            elif action == "zeroes":
                connection.zeroes(offset, length)
                model[offset:offset + length] = bytes(length)
            elif action == "trim":
                connection.trim(offset, length)
                model[offset:offset + length] = bytes(length)
            assert connection.read(offset, length) == model[offset:offset + length], (step, action, offset, length)
        assert connection.read(0, size) == model


def test_snapshot_export_is_read_only_and_stays(ovs):
    ovs.create("v", "8MiB")
    qemu_io(ovs.uri("v"), "write -P 1 0 64k")
    ovs.ovs("snapshot", "create", "default/v@before")
    qemu_io(ovs.uri("v"), "write -P 2 0 64k")
    uri = f"nbd+unix:///default/v@before?socket={ovs.nbd_socket}"
    assert nbdinfo(uri)["exports"][0]["is_read_only"]
    run("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 64k", uri)
    with Connection(ovs.nbd_socket, "default/v@before") as connection, pytest.raises(Failed):
        connection.write(0, b"x" * 4096)
    qemu_io(ovs.uri("v"), "read -P 2 0 64k")


def test_grown_size_is_seen_on_reconnect(ovs):
    ovs.create("v", "8MiB")
    with Connection(ovs.nbd_socket, "default/v") as before:
        ovs.ovs("vdisk", "resize", "default/v", "--size", "24MiB")
        assert before.read(0, 4096) == bytes(4096)
    assert nbdinfo(ovs.uri("v"))["exports"][0]["export-size"] == 24 * MIB
    qemu_io(ovs.uri("v"), "read -P 0 8M 16M", "write -P 5 23M 1M")


def test_the_largest_vdisk_works_at_its_end(ovs):
    ovs.create("v", "64TiB")
    qemu_io(ovs.uri("v"), f"write -P 9 {(64 << 40) - 4096} 4k",
            f"read -P 9 {(64 << 40) - 4096} 4k", "read -P 0 0 1M")
    with pytest.raises(Refused) as refused:
        ovs.create("w", "65TiB")
    assert refused.value.code == 2 and "64TiB" in str(refused.value)


@pytest.mark.timeout(400)
def test_snapshot_and_clone_cost_the_same_on_a_full_terabyte(ovs, scale):
    """1 TiB with data spread all over it against an empty one, in turn; the slower may not depend on what was written."""
    for name in ("empty", "full"):
        ovs.create(name, "1TiB")
    fio(ovs.uri("full"), "--size=1T", f"--io_size={scale}G", "--rw=randwrite", "--bs=64k", "--iodepth=16",
        "--norandommap", timeout=360)
    times = {"empty": [], "full": []}
    for round_ in range(9):
        for name in ("empty", "full"):
            start = time.perf_counter()
            status, answer = ovs.rpc("POST", f"/v1/vdisks/default:{name}/snapshots", {"name": f"s{round_}"})
            middle = time.perf_counter()
            assert status in (200, 201), answer
            status, answer = ovs.rpc("POST", "/v1/vdisks", {
                "vpool": "default", "name": f"{name}-clone-{round_}",
                "source": {"vdisk": f"default:{name}", "snapshot": f"s{round_}"}})
            end = time.perf_counter()
            assert status in (200, 201), answer
            times[name].append((middle - start, end - middle))
    for part, what in enumerate(("snapshot", "clone")):
        empty, full = (statistics.median(pair[part] for pair in times[name]) for name in ("empty", "full"))
        print(f"{what}: empty {empty * 1000:.1f} ms, with {scale} GiB written {full * 1000:.1f} ms")
        assert full < 2 * empty + 0.025, f"{what} of a written vDisk: {full * 1000:.1f} ms, of an empty one {empty * 1000:.1f} ms"
    # And the clone is the vDisk: a sample of it reads the same.
    with Connection(ovs.nbd_socket, "default/full") as one, Connection(ovs.nbd_socket, "default/full-clone-8") as two:
        for offset in range(0, 1 << 40, (1 << 40) // 64):
            assert one.read(offset, 65536) == two.read(offset, 65536)


def test_two_vdisks_written_at_once_do_not_mix(ovs, chance):
    for name in ("a", "b"):
        ovs.create(name, "64MiB")
    writers = {name: nbd_client.Writer(ovs.nbd_socket, f"default/{name}", 4096, random.Random(chance.random()), depth=8)
               for name in ("a", "b")}
    for index, writer in enumerate(writers.values()):
        writer.version = index << 40  # versions of the two never meet
    threads = [threading.Thread(target=writer.run, kwargs={"seconds": 4}) for writer in writers.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers.values():
        writer.drain()
        assert len(writer.acknowledged) > 500
        writer.check()

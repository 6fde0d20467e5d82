"""kill -9 of ovsd: no client that lives on loses an acknowledged write, flushed or not. And every local file lost."""

import os
import random
import shutil
import threading
import time

import pytest

from nbd_client import BLOCK, FUA, Connection, Gone, Writer, block_of, connect_again, version_of
from stack import MIB, Refused, Stack, run, wait_until


def kill_and_restart(ovs, pause_s=0.0):
    ovs.ovsd.kill9()
    time.sleep(pause_s)
    ovs.restart()


def test_unflushed_writes_survive_for_a_client_that_lives_on(ovs, chance):
    """Nothing is ever flushed. The writer reconnects, sends again what was in flight, and reads what was acknowledged."""
    ovs.create("v", "256MiB")
    writer = Writer(ovs.nbd_socket, "default/v", 16384, chance)
    writer.run(seconds=2)
    ovs.ovsd.kill9()
    thread = threading.Thread(target=ovs.restart)
    thread.start()
    writer.run(seconds=2)
    thread.join()
    assert writer.reconnects == 1
    writer.drain()
    writer.check()


def test_unflushed_writes_survive_for_a_client_that_comes_after(ovs, chance):
    """The same, read by another connection after the restart, through the vDisk's own socket."""
    shown = ovs.create("v", "256MiB")
    writer = Writer(ovs.nbd_socket, "default/v", 16384, chance)
    writer.run(seconds=2)
    writer.drain()
    writer.connection.close()
    kill_and_restart(ovs)
    with Connection(shown["nbd_socket"]) as after:
        writer.check(after)


@pytest.mark.timeout(240)
def test_kill_at_random_moments(ovs, chance, scale):
    """Many lives of one vDisk under a writer that never flushes, with kills in start-up and recovery too."""
    ovs.create("v", "64MiB")
    writer = Writer(ovs.nbd_socket, "default/v", 8192, random.Random(chance.random()), depth=32)
    stop = threading.Event()
    kills = []

    def kill_often():
        while not stop.is_set():
            time.sleep(chance.choice((0.02, 0.1, 0.4, 1.0, 2.0)) * chance.random() * 2)
            ovs.ovsd.kill9()
            kills.append(time.monotonic())
            ovs.ovsd.start()
            if chance.random() < 0.6:
                ovs.wait_ready()

    thread = threading.Thread(target=kill_often)
    thread.start()
    try:
        for _ in range(4 * scale):
            writer.run(seconds=5)
            writer.drain()
            writer.check()
    finally:
        stop.set()
        thread.join()
    ovs.wait_ready()
    writer.drain()
    writer.check()
    print(f"{len(kills)} kills, {writer.reconnects} reconnects, {writer.version} writes")
    assert len(kills) >= 5 and writer.reconnects >= 3
    with connect_again(ovs.nbd_socket, "default/v") as after:
        writer.check(after)


@pytest.mark.timeout(180)
def test_snapshots_and_clones_answered_for_survive(ovs, chance):
    """What a snapshot or clone call returned is there after a kill, with the contents of its moment."""
    ovs.create("v", "32MiB")
    contents = {}

    def contents_now(writer):
        writer.drain()
        return dict(writer.acknowledged)

    for round_ in range(4):
        writer = Writer(ovs.nbd_socket, "default/v", 4096, random.Random(chance.random()))
        writer.version = round_ << 32
        if round_:
            writer.acknowledged = dict(contents[f"v@s{round_ - 1}"])
        writer.run(seconds=0.6)
        contents[f"v@s{round_}"] = contents_now(writer)
        ovs.ovs("snapshot", "create", f"default/v@s{round_}")
        ovs.ovs("vdisk", "clone", f"default/v@s{round_}", f"default/clone{round_}")
        contents[f"clone{round_}"] = contents[f"v@s{round_}"]
        writer.connection.close()
        if chance.random() < 0.5:
            with Connection(ovs.nbd_socket, f"default/clone{round_}") as clone:
                clone.write(0, block_of(0, (99 << 32) + round_))
            contents[f"clone{round_}"] = {**contents[f"clone{round_}"], 0: (99 << 32) + round_}
        kill_and_restart(ovs)
        for export, expected in contents.items():
            with Connection(ovs.nbd_socket, f"default/{export}") as connection:
                for number, version in expected.items():
                    assert version_of(number, connection.read(number * BLOCK, BLOCK)) == version, (export, number)
    assert {s["name"] for s in items(ovs.ovs("snapshot", "list", "default/v"))} == {f"s{n}" for n in range(4)}


def items(listed):
    """A list, whether the answer is the array itself or a page of it."""
    return listed if isinstance(listed, list) else listed.get("items", listed)


@pytest.mark.timeout(180)
def test_discards_and_deletes_stay_done(ovs):
    ovs.create("v", "16MiB")
    ovs.create("gone", "16MiB")
    with Connection(ovs.nbd_socket, "default/v") as connection:
        connection.write(0, b"x" * MIB)
        connection.write(2 * MIB, b"y" * MIB)
        connection.trim(0, MIB)
        connection.zeroes(2 * MIB + 100, 5000)
    ovs.ovs("vdisk", "delete", "default/gone")
    kill_and_restart(ovs)
    with Connection(ovs.nbd_socket, "default/v") as connection:
        assert connection.read(0, MIB) == bytes(MIB)
        assert connection.read(2 * MIB, MIB) == b"y" * 100 + bytes(5000) + b"y" * (MIB - 5100)
    with pytest.raises(Refused):
        ovs.show("gone")


def test_a_reply_lost_with_the_server_is_repeated_once(ovs):
    """A write applied but unanswered, then sent again: the older one must not come up after a newer write (section 9.11)."""
    ovs.create("v", "16MiB")
    first = Connection(ovs.nbd_socket, "default/v")
    for version in range(1, 200):
        first.submit(1, 0, BLOCK, block_of(0, version))
    first.close()  # hangs up in the middle: its requests are applied or dropped before anyone else gets in
    with Connection(ovs.nbd_socket, "default/v") as second:
        before = version_of(0, second.read(0, BLOCK))
        second.write(0, block_of(0, 1000))
        for _ in range(50):
            assert version_of(0, second.read(0, BLOCK)) == 1000, f"an older write came up again (was {before})"


def test_the_registry_can_be_lost(ovs, chance):
    """Section 9.15: nothing lives in RocksDB alone. What it held is found again in the write buffer and the backend."""
    ovs.create("v", "64MiB", "--description", "kept")
    ovs.create("w", "32MiB")
    writer = Writer(ovs.nbd_socket, "default/v", 8192, chance)
    writer.run(seconds=1)
    ovs.ovs("snapshot", "create", "default/v@s")
    writer.run(seconds=1)
    writer.drain()
    writer.connection.close()
    assert ovs.ovsd.stop() == 0
    databases = [path.parent for path in ovs.state.rglob("CURRENT")]
    assert databases, f"no RocksDB below {ovs.state}?"
    for database in databases:
        shutil.rmtree(database)
    ovs.restart()
    with Connection(ovs.nbd_socket, "default/v") as connection:
        writer.check(connection)
    assert ovs.show("w")["size_bytes"] == 32 * MIB
    assert [s["name"] for s in items(ovs.ovs("snapshot", "list", "default/v"))] == ["s"]


def test_an_open_file_outlives_a_lost_registry(edge):
    """It names its session again: the attachment that went with the registry is not missed."""
    ovs = edge
    ovs.create("v", "64MiB")
    file = os.open(ovs.root / "mnt/ovs/default/v.raw", os.O_RDWR)
    os.pwrite(file, b"a" * 8192, 0)
    os.fsync(file)
    ovs.ovsd.kill9()
    shutil.rmtree(ovs.state / "registry")
    ovs.restart()
    os.pwrite(file, b"b" * 8192, 8192)
    os.fsync(file)
    kill_and_restart(ovs)
    os.pwrite(file, b"c" * 4096, 4096)
    os.fsync(file)
    assert os.pread(file, 16384, 0) == b"a" * 4096 + b"c" * 4096 + b"b" * 8192
    os.close(file)


def backend_of(ovs, vpool="default"):
    """The directory of a vPool's backend."""
    return ovs.ovs("backend", "show", ovs.ovs("vpool", "show", vpool)["backend"])["path"]


def wait_on_backend(ovs, vdisk, snapshot):
    def done():
        status, answer = ovs.rpc("GET", f"/v1/vdisks/default:{vdisk}/snapshots/{snapshot}?wait=on_backend")
        return status == 200 and answer["on_backend"]

    wait_until(f"{vdisk}@{snapshot} is on the backend", done, 60)


@pytest.mark.timeout(240)
def test_recover_with_every_local_file_lost(ovs, make_stack, chance, tmp_path):
    """Only the backend's directory is left. `ovs vpool recover` on an empty root brings back vDisks, snapshots and clones."""
    ovs.create("v", "64MiB", "--description", "the database")
    writer = Writer(ovs.nbd_socket, "default/v", 8192, chance)
    writer.run(seconds=1.5)
    writer.drain()
    at_snapshot = dict(writer.acknowledged)
    ovs.ovs("snapshot", "create", "default/v@s")
    writer.version += 1 << 32
    writer.run(seconds=1.5)
    writer.drain()
    ovs.ovs("vdisk", "clone", "default/v@s", "default/clone")
    with Connection(ovs.nbd_socket, "default/clone") as clone:
        clone.write(0, block_of(0, 77 << 40), FUA)
    at_clone = {**at_snapshot, 0: 77 << 40}
    ovs.create("empty", "1GiB")
    ovs.ovs("snapshot", "create", "default/v@end")
    ovs.ovs("snapshot", "create", "default/clone@end")
    wait_on_backend(ovs, "v", "end")
    wait_on_backend(ovs, "clone", "end")
    writer.connection.close()
    backend = backend_of(ovs)
    ovs.ovsd.kill9()

    moved = tmp_path / "backend"
    shutil.copytree(backend, moved, symlinks=True)
    fresh = make_stack()
    fresh.start()
    fresh.ovs("vpool", "recover", "rescued", "--backend", moved, timeout=120)
    for export, expected in (("v", writer.acknowledged), ("v@s", at_snapshot), ("clone", at_clone), ("clone@end", at_clone)):
        with Connection(fresh.nbd_socket, f"rescued/{export}") as connection:
            for number, version in expected.items():
                assert version_of(number, connection.read(number * BLOCK, BLOCK)) == version, (export, number)
    assert fresh.show("empty", "rescued")["size_bytes"] == 1 << 30
    assert fresh.show("v", "rescued")["description"] == "the database"
    # They are whole vDisks again: written, snapshotted, restarted.
    with Connection(fresh.nbd_socket, "rescued/v") as connection:
        connection.write(0, block_of(0, 88 << 40))
    fresh.ovs("snapshot", "create", "rescued/v@new")
    kill_and_restart(fresh)
    with Connection(fresh.nbd_socket, "rescued/v") as connection:
        assert version_of(0, connection.read(0, BLOCK)) == 88 << 40


def test_a_second_ovsd_on_one_root_is_refused(ovs):
    """Replay is under an exclusive lock: two of them on one log would be the end of it."""
    ovs.create("v", "8MiB")
    second = Stack(root=ovs.root)
    second.ovsd.log = ovs.logs / "second.log"
    second.ovsd.start()
    code = second.ovsd.process.wait(30)
    assert code != 0, "a second ovsd ran on the same root"
    with Connection(ovs.nbd_socket, "default/v") as connection:
        connection.write(0, b"x" * 4096)
    assert ovs.ovsd.alive()


def test_graceful_stop_and_start(ovs, chance):
    ovs.create("v", "64MiB")
    writer = Writer(ovs.nbd_socket, "default/v", 8192, chance)
    writer.run(seconds=1)
    writer.drain()
    assert ovs.ovsd.stop() == 0
    ovs.restart()
    with pytest.raises(Gone):
        writer.connection.read(0, BLOCK)
    with Connection(ovs.nbd_socket, "default/v") as connection:
        writer.check(connection)
    assert run("qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", ovs.uri("v"))

"""Write buffer full, disk full, directory read-only: the vDisk does what its on_full says, reads go on, it resumes by
itself, and a full system can be emptied."""

import contextlib
import random
import threading
import time

import pytest

from nbd_client import BLOCK, ENOSPC, WRITE, Connection, Failed, Writer, block_of
from stack import MIB, is_mounted, run, wait_until

TINY_BUFFER = """
buffer:
  size: 64MiB
  segment_size: 4MiB
destage:
  size: 2MiB
  after: 500ms
  sco_size: 1MiB
stop:
  patience: 2s
"""


def small_file_system(stack, name, size_mib, at):
    """An ext4 of a few MiB, mounted at a folder of the root (all of it goes when the stack closes)."""
    image = stack.root / f"{name}.img"
    with open(image, "wb") as file:
        file.truncate(size_mib * MIB)
    run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=0", image)
    at.mkdir(parents=True, exist_ok=True)
    run("mount", "-o", "loop", image, at)
    return at


@pytest.fixture
def small_backend(make_stack):
    """ovsd with a tiny write buffer, its backend on a file system of 200 MiB, of which it leaves 64 untouched."""
    stack = make_stack(TINY_BUFFER)
    backend = small_file_system(stack, "backend", 200, stack.root / "backend")
    stack.configure(TINY_BUFFER + f"default_vpool:\n  backend_path: {backend / 'objects'}\n")
    stack.backend = backend
    return stack.start()


def vdisk(stack, name, size_bytes, **more):
    status, answer = stack.rpc("POST", "/v1/vdisks", {"vpool": "default", "name": name, "size_bytes": size_bytes, **more})
    assert status in (200, 201), answer
    return answer


def fill(connection, limit, chance):
    """Writes random megabytes until one is refused; how many were acknowledged, with their data."""
    written = []
    for number in range(limit):
        data = chance.randbytes(MIB)
        try:
            connection.write(number * MIB, data)
        except Failed as error:
            assert error.errno == ENOSPC, error
            return written
        written.append(data)
    return written


def check(connection, written):
    for number, data in enumerate(written):
        assert connection.read(number * MIB, MIB) == data, f"MiB {number}"


def purge(stack, name):
    status, answer = stack.rpc("DELETE", f"/v1/vdisks/default:{name}?purge=true")
    assert status in (200, 202, 204), answer


def ballast(stack, mib, chance):
    """A vDisk of some size on the backend, to be deleted later."""
    vdisk(stack, "ballast", mib * MIB)
    with Connection(stack.nbd_socket, "default/ballast") as connection:
        for number in range(mib):
            connection.write(number * MIB, chance.randbytes(MIB))
        connection.flush()
    wait_until("ballast is on the backend", lambda: stack.show("ballast")["buffered_bytes"] == 0, 60)


@pytest.mark.timeout(180)
def test_backend_full_enospc(small_backend, chance):
    """An error at once instead of waiting; reads go on; after a delete it takes writes again by itself."""
    stack = small_backend
    ballast(stack, 40, chance)
    vdisk(stack, "v", 512 * MIB, on_full="enospc")
    connection = Connection(stack.nbd_socket, "default/v")
    written = fill(connection, 400, chance)
    assert 30 < len(written) < 200, f"{len(written)} MiB were taken by a backend of 200 MiB and a buffer of 64"
    check(connection, written)
    assert stack.rpc("GET", "/v1/status")[0] == 200
    purge(stack, "ballast")

    def takes_writes():
        connection.write(500 * MIB, b"n" * BLOCK)
        return True

    wait_until("it takes writes again", takes_writes, 60, every_s=0.5)
    connection.flush()
    check(connection, written)
    assert connection.read(500 * MIB, BLOCK) == b"n" * BLOCK


@pytest.mark.timeout(180)
def test_backend_full_stall(small_backend, chance):
    """Writes wait, without an error; reads of this and other vDisks go on; a delete lets them finish."""
    stack = small_backend
    ballast(stack, 50, chance)
    vdisk(stack, "v", 512 * MIB)
    data = [chance.randbytes(MIB) for _ in range(16)]
    stalled, finished, goal, problems = Connection(stack.nbd_socket, "default/v"), [], [500], []
    stalled.sock.settimeout(170)

    def write_all():
        try:
            while len(finished) < goal[0]:
                number = len(finished)
                stalled.write(number * MIB, data[number % 16])
                finished.append(number)
        except Exception as error:  # noqa: BLE001: told below
            problems.append(error)

    thread = threading.Thread(target=write_all, daemon=True)
    thread.start()
    last = [-1, time.monotonic()]

    def stands_still():
        if len(finished) != last[0]:
            last[:] = [len(finished), time.monotonic()]
        return time.monotonic() - last[1] > 5

    wait_until("the writer stands still", stands_still, 60, every_s=0.2)
    assert thread.is_alive() and not problems and len(finished) > 30, (len(finished), problems)
    with Connection(stack.nbd_socket, "default/v") as reader, Connection(stack.nbd_socket, "default/ballast") as other:
        for number in (0, 1, len(finished) // 2, len(finished) - 1):
            assert reader.read(number * MIB, MIB) == data[number % 16]
        assert len(other.read(0, MIB)) == MIB
    assert stack.show("v")["state"] == "stalled"
    goal[0] = len(finished) + 20  # what there is room for, with what waits in the write buffer
    wait_until("nobody is attached", lambda: stack.show("ballast")["attachment_count"] == 0)
    purge(stack, "ballast")
    thread.join(60)
    assert not thread.is_alive() and not problems and len(finished) == goal[0], (len(finished), problems)
    wait_until("it is not stalled any more", lambda: stack.show("v")["state"] == "ok", 30)
    check(stalled, [data[number % 16] for number in finished])


@pytest.mark.timeout(180)
def test_stall_timeout(small_backend, chance):
    """Waiting has an end where one is set: then an error, and the data already taken is untouched."""
    stack = small_backend
    vdisk(stack, "v", 512 * MIB, on_full="stall", stall_timeout_ms=2000)
    connection = Connection(stack.nbd_socket, "default/v")
    written = fill(connection, 400, chance)
    assert len(written) < 200
    start = time.monotonic()
    with pytest.raises(Failed) as refused:
        for number in range(300, 400):
            connection.write(number * MIB, chance.randbytes(MIB))
    assert refused.value.errno == ENOSPC and time.monotonic() - start > 1.5
    check(connection, written)


@pytest.mark.timeout(180)
def test_backend_read_only_and_back(small_backend):
    """Acknowledged data waits in the write buffer; reads go on; nobody has to do anything when the directory is back."""
    stack = small_backend
    vdisk(stack, "v", 64 * MIB)
    writer = Writer(stack.nbd_socket, "default/v", 4096, random.Random(5))
    writer.run(writes=2000)

    def read_only():
        run("mount", "-o", "remount,ro", stack.backend)
        return True

    wait_until("the backend is read-only", read_only, 30)  # busy while an object is being written
    try:
        writer.run(writes=4000)
        writer.drain()
        time.sleep(3)
        writer.check()
        writer.run(writes=200)
        writer.drain()
    finally:
        run("mount", "-o", "remount,rw", stack.backend)
    writer.run(writes=2000)
    writer.drain()
    wait_until("everything is on the backend", lambda: stack.show("v")["buffered_bytes"] == 0, 60)
    writer.check()
    stack.ovsd.kill9()
    stack.restart()
    with Connection(stack.nbd_socket, "default/v") as connection:
        writer.check(connection)


@pytest.mark.timeout(240)
def test_backend_read_only_at_start(small_backend):
    """A kill while the backend takes nothing: what was acknowledged is served from the replayed buffer."""
    stack = small_backend
    vdisk(stack, "v", 64 * MIB)
    writer = Writer(stack.nbd_socket, "default/v", 4096, random.Random(6))
    writer.run(writes=1000)
    wait_until("read-only", lambda: run("mount", "-o", "remount,ro", stack.backend) is not None, 30)
    try:
        writer.run(writes=1000)
        writer.drain()
        stack.ovsd.kill9()
        stack.ovsd.start()
        # It may serve at once, or wait for the backend (an epoch is opened there): it may not lose anything or give up.
        time.sleep(5)
        assert stack.ovsd.alive(), stack.ovsd.tail()
    finally:
        run("mount", "-o", "remount,rw", stack.backend)
    stack.wait_ready(60)
    writer.retry_s = 60
    writer.run(writes=100)
    writer.drain()
    writer.check()


@pytest.mark.timeout(120)
def test_a_tiny_buffer_slows_and_never_fails(make_stack, chance):
    """Five times the write buffer at full speed: backpressure, no error, every byte right."""
    stack = make_stack(TINY_BUFFER).start()
    vdisk(stack, "v", 512 * MIB)
    run("fio", "--name=j", "--ioengine=nbd", f"--uri={stack.uri('v')}", "--thread", "--rw=randwrite", "--bs=64k", "--iodepth=16",
        "--size=512M", "--io_size=320M", "--verify=crc32c", "--verify_fatal=1", timeout=110)


@contextlib.contextmanager
def eaten(path):
    """No byte left on a file system."""
    food = path / "food"
    run("dd", "if=/dev/zero", f"of={food}", "bs=1M", check=False)
    run("dd", "if=/dev/zero", f"of={food}.more", "bs=4k", check=False)
    try:
        yield
    finally:
        food.unlink()
        (path / "food.more").unlink()


@pytest.mark.timeout(240)
def test_local_disk_full(make_stack, chance):
    """The disk under /var/lib/ovs itself (log, registry and backend) has no byte left."""
    stack = make_stack(TINY_BUFFER)
    disk = small_file_system(stack, "local", 400, stack.state)
    stack.start()
    ballast(stack, 60, chance)
    vdisk(stack, "v", 512 * MIB, on_full="enospc")
    connection = Connection(stack.nbd_socket, "default/v")
    first = chance.randbytes(MIB)
    connection.write(0, first)
    with eaten(disk):
        written = [first]
        with contextlib.suppress(Failed):
            for number in range(1, 200):
                data = chance.randbytes(MIB)
                connection.write(number * MIB, data)
                written.append(data)
        assert len(written) < 150
        check(connection, written)
        # It can be emptied while it is full.
        purge(stack, "ballast")

        def takes_writes():
            connection.write(400 * MIB, b"n" * BLOCK)
            return True

        wait_until("there is room after the delete", takes_writes, 90, every_s=0.5)
        check(connection, written)
    connection.write(len(written) * MIB, chance.randbytes(MIB))
    connection.flush()
    stack.ovsd.kill9()
    stack.restart()
    with Connection(stack.nbd_socket, "default/v") as again:
        check(again, written)
    assert is_mounted(stack.state)


@pytest.mark.timeout(180)
def test_kill_while_full(small_backend, chance):
    """Full, killed, started: everything acknowledged is there, and it can still be emptied."""
    stack = small_backend
    ballast(stack, 40, chance)
    vdisk(stack, "v", 512 * MIB, on_full="enospc")
    connection = Connection(stack.nbd_socket, "default/v")
    written = fill(connection, 400, chance)
    stack.ovsd.kill9()
    stack.restart()
    with Connection(stack.nbd_socket, "default/v") as again:
        check(again, written)
        purge(stack, "ballast")

        def takes_writes():
            again.call(WRITE, 500 * MIB, BLOCK, block_of(1, 1))
            return True

        wait_until("it takes writes again", takes_writes, 60, every_s=0.5)
        check(again, written)

"""Faults from outside: programs killed, held and starved at moments from a seed; a disk that refuses writes and syncs, or is full;
too little memory. A failed run prints its seed: OVS_TEST_SEED repeats it, OVS_TEST_ROUNDS lengthens the loops."""

import contextlib
import hashlib
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
import time

import pytest

from nbd_client import BLOCK, EIO, Connection, Failed, Gone, Writer, block_of, connect_again, version_of
from stack import (MIB, REPOSITORY, Cgroup, NoCgroup, Program, Refused, Strace, loop_device, mounted, run, wait_until)
from test_cli import metrics
from test_full import TINY_BUFFER, eaten, small_file_system

WITH_THREADS = TINY_BUFFER + "io_uring: false\n"
ROUNDS = int(os.environ.get("OVS_TEST_ROUNDS", "1"))
TROUBLE_S = 12 * ROUNDS


# --- killed, held, starved

class Trouble:
    """Does things to programs, one after the other, until it is told to stop. What and when is drawn from the seed."""

    def __init__(self, stack, chance, killable, others=()):
        self.stack, self.chance = stack, random.Random(chance.random())
        self.killable, self.programs = set(killable), [*killable, *others]
        self.stop_asked = threading.Event()
        self.thread = threading.Thread(target=self.loop)
        self.done, self.problems = [], []
        try:
            self.cgroup = Cgroup("cpu")
        except NoCgroup:
            self.cgroup = None

    def kill(self, program):
        program.kill9()
        self.pause(0.5)
        if program is self.stack.edge:
            self.stack.start_edge()
        else:
            program.start()
            if self.chance.random() < 0.7:  # else the next comes in the middle of the start
                self.stack.wait_ready()

    def hold(self, program):
        with program.held():
            self.pause(2.9, at_least_s=0.1)

    def starve(self, program):
        """A fortieth of a processor; without cgroups, what the others on its processor leave."""
        if self.cgroup:
            self.cgroup.limit(0.025)
            self.cgroup.add(program.pid)
            self.pause(2)
            self.cgroup.limit(None)
            return
        every = os.sched_getaffinity(program.pid)
        run("taskset", "-acp", min(every), program.pid)
        run("renice", "-n", "19", "-g", program.pid)  # every thread: it leads a group of its own
        with subprocess.Popen(["taskset", "-c", str(min(every)), "sh", "-c", "while :; do :; done"]) as eater:
            self.pause(2)
            eater.kill()
        run("renice", "-n", "0", "-g", program.pid)
        run("taskset", "-acp", ",".join(map(str, every)), program.pid)

    def pause(self, at_most_s, at_least_s=0.0):
        time.sleep(at_least_s + self.chance.random() * (at_most_s - at_least_s))

    def loop(self):
        deck = []  # so that each of them comes up early
        try:
            while not self.stop_asked.wait(self.chance.random() * 1.2):
                if not deck:
                    deck = [(what, program) for program in self.programs for what in ("kill", "hold", "starve")
                            if what != "kill" or program in self.killable]
                    self.chance.shuffle(deck)
                    if not self.done:  # short work meets a kill at least
                        deck.sort(key=lambda one: one[0] == "kill")
                what, program = deck.pop()
                self.done.append(f"{what} {program.name}")
                getattr(self, what)(program)
        except Exception as error:  # noqa: BLE001: told at the end
            self.problems.append(error)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop_asked.set()
        self.thread.join(90)
        if self.cgroup:
            self.cgroup.limit(None)
            self.cgroup.close()
        print(f"{len(self.done)} faults: {', '.join(self.done)}")
        assert not self.thread.is_alive() and not self.problems, self.problems
        assert any(one.startswith("kill") for one in self.done), "nothing was killed"
        self.stack.wait_ready()


FIO = ["fio", "--name=j", "--rw=randrw", "--rwmixread=30", "--bsrange=4k-64k", "--blockalign=4k", "--size=96M", "--verify=crc32c",
       "--verify_fatal=1", "--verify_backlog=256", "--time_based", "--rate_iops=2000"]


def fio_under(trouble, seconds, chance, *more):
    """fio writing and reading back while there is trouble; it must not notice more than waiting."""
    fio = subprocess.Popen([*FIO, f"--runtime={seconds}", f"--randseed={chance.randrange(1 << 31)}", *more], stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with trouble:
            time.sleep(seconds)
        output, _ = fio.communicate(timeout=90)
    finally:
        fio.kill()
        fio.wait()
    assert fio.returncode == 0, output[-3000:]
    assert len(trouble.done) >= 2


@pytest.mark.timeout(60 + 90 * ROUNDS)
def test_trouble_under_a_qemu_client(ovs, chance):
    """fio through QEMU's own NBD client, which connects again and repeats what was unanswered (`reconnect-delay`)."""
    ovs.create("v", "96MiB")
    there = ovs.root / "run/qemu.sock"
    source = f"driver=nbd,server.type=unix,server.path={ovs.nbd_socket},export=default/v,reconnect-delay=120"
    argv = ["qemu-nbd", "--image-opts", f"driver=raw,file.{source.replace(',', ',file.')}", "--socket", there, "--persistent", "--cache=none"]
    qemu = Program("qemu-nbd", argv, ovs.logs / "qemu-nbd.log").start()
    ovs.on_close(qemu.stop)
    wait_until("qemu-nbd listens", there.exists)
    fio_under(Trouble(ovs, chance, [ovs.ovsd]), TROUBLE_S, chance, "--ioengine=nbd", f"--uri=nbd+unix:///?socket={there}", "--iodepth=8",
              "--thread")


@pytest.mark.timeout(60 + 90 * ROUNDS)
def test_trouble_under_a_file(edge, chance):
    """fio on the FUSE file. ovsd-edge is held and starved as well."""
    edge.create("v", "96MiB")
    fio_under(Trouble(edge, chance, [edge.ovsd], [edge.edge]), TROUBLE_S, chance, "--ioengine=libaio", "--iodepth=8", "--direct=1",
              f"--filename={edge.file('v')}")


@pytest.mark.timeout(60 + 90 * ROUNDS)
def test_trouble_that_kills_the_edge_too(edge, chance):
    """Its death costs the open file, never an acknowledged write, flushed or not: whoever opens the file again finds it."""
    edge.create("v", "32MiB")
    program = pathlib.Path(__file__).with_name("file_writer.py")
    writer = subprocess.Popen([sys.executable, program, edge.file("v"), "4096", str(chance.randrange(1 << 31))],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        trouble = Trouble(edge, chance, [edge.ovsd, edge.edge])
        with trouble:
            time.sleep(TROUBLE_S)
        output, _ = writer.communicate(timeout=120)
    finally:
        writer.kill()
        writer.wait()
    print(output)
    assert writer.returncode == 0, output[-3000:]


FILE_SYSTEMS = {
    "ext4": (["mkfs.ext4", "-q", "-F", "-E", "nodiscard"], ["-o", "discard,errors=remount-ro"], ["e2fsck", "-fn"]),
    # lazytime and the like are the default; a log replay is not needed after a clean umount.
    "xfs": (["mkfs.xfs", "-q", "-f", "-K"], ["-o", "discard"], ["xfs_repair", "-n"]),
}


# Seven folders of these, 600 kB on average, fill less than half of the file system, however quick the machine is.
FILES_PER_FOLDER = 40


class Files:
    """Makes, overwrites, renames and removes files, some of them synced, and remembers what each must contain."""

    def __init__(self, folder, chance):
        self.folder, self.chance, self.sums, self.problems = folder, random.Random(chance.random()), {}, []
        self.stop_asked = threading.Event()
        self.thread = threading.Thread(target=self.loop)

    def step(self, number):
        chance = self.chance
        path = self.folder / f"d{number % 7}" / f"f{chance.randrange(FILES_PER_FOLDER)}"
        path.parent.mkdir(exist_ok=True)
        choice = chance.random()
        if path in self.sums and choice < 0.1:
            path.unlink()
            del self.sums[path]
        elif path in self.sums and choice < 0.2:
            target = path.with_name(f"f{chance.randrange(FILES_PER_FOLDER)}")
            path.rename(target)
            self.sums[target] = self.sums.pop(path)
        else:
            data = chance.randbytes(chance.choice((100, 5000, 300_000, 2_000_000)))
            with open(path, "wb") as file:
                file.write(data)
                if choice > 0.5:
                    file.flush()
                    os.fsync(file.fileno())
            self.sums[path] = hashlib.sha256(data).digest()

    def loop(self):
        try:
            number = 0
            while not self.stop_asked.is_set():
                self.step(number)
                number += 1
        except Exception as error:  # noqa: BLE001: told at the end
            self.problems.append(error)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop_asked.set()
        self.thread.join(90)
        assert not self.thread.is_alive() and not self.problems, self.problems

    def check(self):
        assert len(self.sums) > 5
        for path, digest in self.sums.items():
            assert hashlib.sha256(path.read_bytes()).digest() == digest, path


@pytest.mark.timeout(60 + 90 * ROUNDS)
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_trouble_under_a_file_system(edge, chance, kind, tmp_path):
    """Over a loop device of the file. ovsd-edge is only held and starved: docs/edge.md says what its death costs here."""
    make, options, check = FILE_SYSTEMS[kind]
    edge.create("v", "512MiB")
    run(*make, edge.file("v"))
    with loop_device(edge.file("v")) as device:
        with mounted(device, tmp_path / "m", *options) as folder:
            files = Files(folder, chance)
            with Trouble(edge, chance, [edge.ovsd], [edge.edge]), files:
                time.sleep(TROUBLE_S)
        # Mounted anew: nothing of it is in the page cache.
        run(*check, device)
        with mounted(device, tmp_path / "m", *options):
            files.check()


# --- a disk that refuses

def slots(stack):
    return sorted((stack.state / "buffer").glob("slot-*.seg"))


def slot_in_use(stack):
    """The one that was written last."""
    return max(slots(stack), key=lambda path: path.stat().st_mtime_ns)


def failed_segments(stack):
    return int(re.search(r"^ovs_buffer_failed_segments (\d+)$", metrics(stack), re.M)[1])


class Blocks:
    """Blocks of one vDisk, by number: the version that was last sent, acknowledged, and vouched for by a flush."""

    def __init__(self, stack, name="v"):
        self.connection = Connection(stack.nbd_socket, f"default/{name}")
        self.sent, self.acknowledged, self.flushed, self.version = {}, {}, {}, 0

    def write(self, number):
        self.version += 1
        self.sent[number] = self.version
        self.connection.write(number * BLOCK, block_of(number, self.version))
        self.acknowledged[number] = self.version

    def flush(self):
        self.connection.flush()
        self.flushed = dict(self.acknowledged)

    def check(self, connection, is_loss_accepted=False):
        """Nothing acknowledged is missing; with a loss accepted, nothing flushed. What is found now stays."""
        for number, sent in self.sent.items():
            found = version_of(number, connection.read(number * BLOCK, BLOCK))
            if is_loss_accepted:
                assert self.flushed.get(number, 0) <= found <= sent, (number, found)
            else:
                assert found in (self.acknowledged.get(number, 0), sent), (number, found)
            self.sent[number] = self.acknowledged[number] = self.flushed[number] = found


@pytest.fixture
def small(make_stack):
    """ovsd with 16 slots of 4 MiB and a vDisk with something flushed."""
    return small_stack(make_stack, TINY_BUFFER)


def small_stack(make_stack, config):
    stack = make_stack(config.replace("500ms", "1h")).start()
    stack.create("v", "64MiB")
    return stack


@pytest.mark.parametrize("call,when", [("fdatasync,fsync", 1), ("fdatasync,fsync", 4), ("pwritev", 1), ("pwritev", 5)])
def test_one_refusal_of_the_disk(make_stack, call, when):
    """Nobody notices: the segment is given up, what was not stable in it is written to another, and only then is a flush answered.
    Then a kill. (A second sync would return success and mean nothing: the kernel has dropped the pages by then.)"""
    # A write without a system call of its own cannot be refused here.
    small = small_stack(make_stack, WITH_THREADS if call == "pwritev" else TINY_BUFFER)
    blocks = Blocks(small)
    blocks.write(0)
    blocks.flush()
    victim = slot_in_use(small)
    with Strace(small.ovsd, f"{call}:error=EIO:when={when}", [victim], small.logs / "strace.log") as strace:
        # Each thread counts for itself.
        for number in range(400):
            for offset in range(4):
                blocks.write(1 + (number * 4 + offset) % 8000)
            blocks.flush()
            if failed_segments(small):
                break
        assert failed_segments(small) == 1, strace.calls()[-20:]
        for number in range(8100, 8110):
            blocks.write(number)
        calls = strace.calls()
    refused = next(index for index, line in enumerate(calls) if "(INJECTED)" in line)
    # One that was under way on another thread may still end.
    later = [line for line in calls[refused + 1:] if victim.name in line and "resumed" not in line]
    assert not later, f"the segment was used again after {calls[refused]}: {later}"
    assert slot_in_use(small) != victim
    assert re.search("its segment is retired.*Input/output error", small.ovsd.log.read_text())
    assert small.show("v")["state"] == "ok"
    small.ovsd.kill9()
    small.restart()
    with Connection(small.nbd_socket, "default/v") as after:
        blocks.check(after)
        after.write(0, block_of(0, 1 << 20))
        after.flush()


def test_io_uring_is_refused_to_cold_reads(make_stack):
    """Threads read what it does not take, and it is asked no more."""
    small = make_stack(TINY_BUFFER).start()
    small.create("v", "64MiB")
    blocks = Blocks(small)
    for number in range(64):
        blocks.write(number)
    blocks.flush()
    wait_until("all has left the write buffer", lambda: small.show("v")["buffered_bytes"] == 0, 60)
    backend = [path for path in (small.state / "backend").rglob("*") if path.is_file()]
    with Strace(small.ovsd, "io_uring_enter:error=EAGAIN:when=1+", [], small.logs / "strace.log") as strace:
        for _ in range(4):
            for path in backend:
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with Connection(small.nbd_socket, "default/v") as again:
                blocks.check(again)
        calls = strace.calls()
    assert sum("io_uring_enter" in line for line in calls) == 3, "each ring is asked once, and three are made"
    assert "io_uring did not take cold reads" in small.ovsd.log.read_text()


def test_io_uring_is_refused(small):
    """Once, and from then on threads write: nothing has failed, nobody notices."""
    blocks = Blocks(small)
    blocks.write(0)
    with Strace(small.ovsd, "io_uring_enter:error=EAGAIN:when=5", [], small.logs / "strace.log") as strace:
        for number in range(1, 60):
            blocks.write(number)
            if number % 3 == 0:
                blocks.flush()
        calls = strace.calls()
    assert sum("(INJECTED)" in line for line in calls) == 1
    assert sum("io_uring_enter" in line for line in calls) == 5 and sum("pwritev" in line for line in calls) > 40
    assert failed_segments(small) == 0
    assert "io_uring did not take a write" in small.ovsd.log.read_text()
    small.ovsd.kill9()
    small.restart()
    with Connection(small.nbd_socket, "default/v") as after:
        blocks.check(after)


def test_what_is_answered_is_synced(small):
    """In the registry, in the backend's objects and their folders, in the write buffer: a kill shows nothing of it, since the kernel lives
    on."""
    blocks = Blocks(small)
    blocks.write(0)
    buffer = slot_in_use(small).parent

    def synced(what):
        with Strace(small.ovsd, "fdatasync,fsync:delay_enter=1", [], small.logs / "strace.log") as strace:
            what()
            files = re.findall(r"sync\(\d+<([^>]+)>", "\n".join(strace.calls()))
        small.logs.joinpath("strace.log").unlink()
        return {"buffer" if file.startswith(str(buffer)) else "folder" if pathlib.Path(file).is_dir() else
                "registry" if file.endswith(".log") else "object" for file in files}

    assert synced(blocks.flush) == {"buffer"}
    assert synced(lambda: small.ovs("vdisk", "protect", "default/v")) >= {"registry", "object", "folder"}
    assert synced(lambda: small.ovs("snapshot", "create", "default/v@s")) >= {"registry", "object", "folder"}


def refused_flush(blocks):
    with pytest.raises(Failed) as refused:
        blocks.flush()
    assert refused.value.errno == EIO


def test_no_sync_of_the_write_buffer_works(small):
    """OFFLINE, with the reason, and over restarts for the vDisk that may have lost something, until that is accepted. The other one serves
    again after the restart."""
    small.create("spared", "16MiB")
    blocks, spared = Blocks(small), Blocks(small, "spared")
    for one in (blocks, spared):
        for number in range(10):
            one.write(number)
        one.flush()
    for number in range(5, 15):
        blocks.write(number)
    with Strace(small.ovsd, "fdatasync,fsync:error=EIO:when=1+", slots(small), small.logs / "strace.log"):
        refused_flush(blocks)
        for one in (blocks, spared):
            with pytest.raises(Failed):
                one.write(20)
            refused_flush(one)
        for name in ("v", "spared"):
            shown = small.show(name)
            assert shown["state"] == "offline" and "write buffer failed" in shown["state_reason"], shown
        with pytest.raises(Refused):
            small.ovs("vdisk", "accept-loss", "default/v")  # not while there is no write buffer
        time.sleep(1)  # its mark is on its way to the registry: a kill meanwhile were two faults in one moment
    small.ovsd.kill9()
    for _ in range(2):
        small.restart()
        shown = small.show("v")
        assert shown["state"] == "offline" and "may be lost" in shown["state_reason"], shown
        with contextlib.suppress(Failed, Gone), Connection(small.nbd_socket, "default/v") as after:
            with pytest.raises(Failed):
                after.read(0, BLOCK)
            with pytest.raises(Failed):
                after.write(0, block_of(0, 1 << 20))
        assert small.show("spared")["state"] == "ok"
        with Connection(small.nbd_socket, "default/spared") as after:
            spared.check(after)
            after.write(15 * MIB, b"x" * BLOCK)
            after.flush()
        small.ovsd.kill9()
    small.restart()
    assert small.ovs("vdisk", "accept-loss", "default/v")["state"] == "ok"
    with Connection(small.nbd_socket, "default/v") as after:
        blocks.check(after, is_loss_accepted=True)
        after.write(0, block_of(0, 1 << 20))
        after.flush()
    small.ovsd.kill9()
    small.restart()
    assert small.show("v")["state"] == "ok"
    with Connection(small.nbd_socket, "default/v") as after:
        assert version_of(0, after.read(0, BLOCK)) == 1 << 20


def test_no_sync_at_all_works(small):
    """The registry's disk is the same one: its mark may be missing after the restart (docs/failure-model.md says so), but nothing that
    could not be synced was ever vouched for."""
    blocks = Blocks(small)
    for number in range(10):
        blocks.write(number)
    blocks.flush()
    for number in range(5, 15):
        blocks.write(number)
    everything = [*slots(small), *(path for path in small.state.rglob("*") if "buffer" not in path.parts)]
    with Strace(small.ovsd, "fdatasync,fsync:error=EIO:when=1+", everything, small.logs / "strace.log"):
        refused_flush(blocks)
        with pytest.raises(Failed):
            blocks.write(20)
        with pytest.raises(Refused):
            small.ovs("snapshot", "create", "default/v@s")
        try:
            assert small.show("v")["state"] == "offline"
        except Refused as error:  # the registry is not to be had either, and that is what it says
            assert "Input/output error" in error.stderr
        time.sleep(1)
    small.ovsd.kill9()
    small.restart()
    if small.show("v")["state"] == "offline":
        small.ovs("vdisk", "accept-loss", "default/v")
    with Connection(small.nbd_socket, "default/v") as after:
        blocks.check(after, is_loss_accepted=True)
        after.write(0, block_of(0, 1 << 20))
        after.flush()


REFUSED_CALLS = ("fdatasync,fsync", "fdatasync", "fsync", "pwrite64,pwritev", "rename,renameat,renameat2,link,linkat", "unlink,unlinkat",
                 "fdatasync,fsync,pwrite64,pwritev")


def change_something(small, blocks, chance, made):
    """Writes, flushes, now and then a new vDisk or a snapshot: what is refused is refused."""
    for _ in range(chance.randrange(1, 12)):
        blocks.write(chance.randrange(8000))
    blocks.flush()
    if chance.random() < 0.1:
        with contextlib.suppress(Refused):
            name = f"n{len(made)}-{chance.randrange(1000)}"
            if chance.random() < 0.5:
                small.create(name, "16MiB")
                made.add(name)
            else:
                small.ovs("snapshot", "create", f"default/v@{name}")


@pytest.mark.timeout(90 + 90 * ROUNDS)
def test_refusals_at_moments_from_the_seed(make_stack, chance):
    """Of any file: the write buffer's, the registry's, the backend's. Each thread of ovsd meets one. What was acknowledged is there after a
    kill, what was flushed even if the write buffer gave up, and vDisks that were made are known."""
    stack = make_stack(WITH_THREADS if chance.random() < 0.5 else TINY_BUFFER).start()
    stack.create("v", "64MiB")
    blocks, made, ends, refusals = Blocks(stack), set(), [], 0
    for round_ in range(6 * ROUNDS):
        call, when = chance.choice(REFUSED_CALLS), chance.randrange(1, 30)
        with Strace(stack.ovsd, f"{call}:error=EIO:when={when}", [], stack.logs / f"strace-{round_}.log") as strace:
            deadline = time.monotonic() + 1.5
            with contextlib.suppress(Failed):
                while time.monotonic() < deadline:
                    change_something(stack, blocks, chance, made)
            refused = sum("(INJECTED)" in line for line in strace.calls())
            refusals += refused
        time.sleep(0.5)
        stack.ovsd.kill9()
        stack.restart()
        state = stack.show("v")["state"]
        ends.append(f"{call} at {when}: {refused} refused, {state}")
        if state == "offline":
            stack.ovs("vdisk", "accept-loss", "default/v")
        blocks.connection = Connection(stack.nbd_socket, "default/v")
        blocks.check(blocks.connection, is_loss_accepted=state == "offline")
        blocks.flush()
        for name in made:
            assert stack.show(name)["state"] == "ok"
    print(*ends, sep="\n")
    assert refusals > 0, "nothing was refused"


# --- a disk that is full

def refusal(stack, timeout_s=30):
    """How ovsd ends when it does not start."""
    stack.ovsd.start()
    assert stack.ovsd.process.wait(timeout_s) == 1
    return stack.ovsd.tail(1)


@pytest.mark.parametrize("folder", ["", "buffer"])
def test_no_room_for_the_write_buffer(make_stack, chance, folder):
    """The first start says what is missing and where, leaves nothing that is in the way of the next, which succeeds once there is room.
    From then on its space is its own: a full disk changes nothing for it."""
    stack = make_stack(TINY_BUFFER)
    disk = small_file_system(stack, "local", 300, stack.state / folder)
    with eaten(disk):
        assert "space" in refusal(stack).lower()
    ballast = disk / "ballast"
    run("fallocate", "-l", "260M", ballast)
    for _ in range(2):
        told = refusal(stack)
        assert "space" in told.lower() and "buffer" in told, told
    ballast.unlink()
    stack.start()
    stack.create("v", "16MiB")
    writer = Writer(stack.nbd_socket, "default/v", 4096, random.Random(chance.random()))
    with eaten(disk):
        writer.run(writes=1000)
        stack.ovsd.kill9()
        stack.restart()
        writer.run(writes=1000)
        writer.drain()
        writer.check()


@pytest.mark.timeout(180)
def test_killed_while_its_disk_is_full(make_stack, chance):
    """Nothing is left under /var/lib/ovs, ovsd is killed and started there: what was acknowledged is served, and it goes on by itself
    when there is room."""
    stack = make_stack(TINY_BUFFER)
    disk = small_file_system(stack, "local", 300, stack.state)
    stack.start()
    stack.create("v", "512MiB")
    writer = Writer(stack.nbd_socket, "default/v", 8192, random.Random(chance.random()))
    writer.run(writes=2000)
    with eaten(disk):
        writer.run(writes=500)
        writer.drain()
        for _ in range(4):
            stack.ovsd.kill9()
            stack.restart()
            writer.check()
            writer.run(writes=500)
            writer.drain()
    writer.run(writes=2000)
    writer.drain()
    wait_until("it is on the backend", lambda: stack.show("v")["buffered_bytes"] == 0, 60)
    stack.ovsd.kill9()
    stack.restart()
    writer.check()


@pytest.mark.timeout(180)
def test_the_registry_s_disk_is_full(make_stack, chance):
    """Its own file system has no byte left: I/O, deletes and restarts go on out of its reserve, and nothing is lost."""
    stack = make_stack(TINY_BUFFER)
    disk = small_file_system(stack, "registry", 200, stack.state / "registry")
    stack.start()
    stack.create("v", "128MiB")
    stack.create("gone", "16MiB")
    writer = Writer(stack.nbd_socket, "default/v", 16384, random.Random(chance.random()))
    writer.run(writes=1000)
    with eaten(disk):
        for number in range(3):
            writer.run(writes=1500)
            writer.drain()
            writer.check()
            with contextlib.suppress(Refused):
                stack.create(f"more{number}", "16MiB")
        stack.ovs("vdisk", "delete", "default/gone")
        stack.ovsd.kill9()
        stack.restart()
        with pytest.raises(Refused):
            stack.show("gone")
        writer.run(writes=500)
        writer.drain()
        writer.check()
    stack.create("after", "16MiB")
    stack.ovsd.kill9()
    stack.restart()
    writer.check()
    assert stack.show("after")["state"] == "ok"
    assert not list(stack.state.glob("registry.*")), "a full disk was taken for damage"


# --- too little memory

PF_MEMALLOC_NOIO, PF_LOCAL_THROTTLE, CAP_SYS_RESOURCE = 0x80000, 0x100000, 24


def test_measures_against_the_deadlock(edge):
    """The kernel must never wait for memory through the process that it writes back through. What the code does about it, thread by thread.

    Where CAP_SYS_RESOURCE is missing, as in a container, the mark as an I/O flusher is refused: then only that it was said."""
    units = REPOSITORY / "packaging/systemd"
    for path in units.glob("ovs*"):
        for line in path.read_text().splitlines():
            assert not re.match(r"(Memory(Max|High|Limit)|LimitAS|LimitRSS|LimitDATA|LimitMEMLOCK=[0-9])", line), f"{path.name}: {line}"
    edge.create("v", "16MiB")
    edge.file("v").write_bytes(b"x" * MIB)
    for program, unit in ((edge.ovsd, "ovsd.service"), (edge.edge, "ovsd-edge.service")):
        text = (units / unit).read_text()
        assert "Slice=ovs.slice" in text and "LimitMEMLOCK=infinity" in text and "OOMScoreAdjust=-" in text
        assert program.status("VmLck") > 0, f"{program.name} locks no memory"
        if int(program.status("CapEff"), 16) >> CAP_SYS_RESOURCE & 1:
            for thread in pathlib.Path(f"/proc/{program.pid}/task").iterdir():
                flags = int((thread / "stat").read_text().rsplit(") ", 1)[1].split()[6])
                assert flags & PF_MEMALLOC_NOIO and flags & PF_LOCAL_THROTTLE, f"{program.name} {(thread / 'comm').read_text()}"
        else:
            assert "PR_SET_IO_FLUSHER" in program.log.read_text()
        assert not own_files(edge, program), "its own files are on its own mount"
        assert not os.readlink(f"/proc/{program.pid}/cwd").startswith(f"{edge.root}/mnt")
        children = pathlib.Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text()
        assert children == "", f"{program.name} has started programs"


def own_files(stack, program):
    """What a program has open, or mapped, on mounts of ovsd-edge or devices."""
    found = []
    for link in pathlib.Path(f"/proc/{program.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    found += [line.split()[-1] for line in pathlib.Path(f"/proc/{program.pid}/maps").read_text().splitlines()]
    return [path for path in found if path.startswith((f"{stack.root}/mnt/", "/dev/loop", "/dev/nbd"))]


LITTLE_MEMORY = """
buffer:
  size: 256MiB
  segment_size: 16MiB
  memory: 32MiB
destage:
  size: 8MiB
"""
# What each has been seen to need under this load, and half as much again.
OVSD_BYTES, EDGE_BYTES, WRITER_BYTES = 192 * MIB, 112 * MIB, 96 * MIB


@pytest.mark.timeout(180)
@pytest.mark.parametrize("direct", ["on", "off"])
def test_heavy_writeback_with_little_memory(make_stack, direct, tmp_path):
    """The writer in a cgroup of 96 MiB, ovsd and ovsd-edge each in one of its own: everything is written, nobody is killed, nobody
    waits for ever. The unit files set no limit at all; here there is one so that reclaim happens under the daemons' feet.

    Not shown here: the daemon inside the *writer's* cgroup. That hangs for good by the kernel's doing, which nothing in user space
    mends, and is why the units have a slice of their own (docs/edge.md). Nor what PR_SET_IO_FLUSHER is worth where it is allowed."""
    stack = make_stack(LITTLE_MEMORY).start().start_edge()
    stack.create("v", "768MiB")
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", stack.file("v"))
    with contextlib.ExitStack() as stacked:
        try:
            cgroups = [stacked.enter_context(Cgroup("memory")) for _ in range(3)]
        except NoCgroup as error:
            pytest.skip(str(error))
        # At the end first the limits go, whatever still waits for memory.
        for cgroup, limit in zip(cgroups, (OVSD_BYTES, EDGE_BYTES, WRITER_BYTES)):
            cgroup.limit(limit)
            stacked.callback(cgroup.limit, None)
        pids = (stack.ovsd.pid, stack.edge.pid)
        for cgroup, pid in zip(cgroups, pids):
            cgroup.add(pid)
        done = run("losetup", "--find", "--show", f"--direct-io={direct}", stack.file("v"))
        device = done.stdout.strip()
        stacked.callback(run, "losetup", "-d", device, check=False)
        with mounted(device, tmp_path / "m", "-o", "errors=remount-ro") as folder:
            script = """echo $$ >"$1/cgroup.procs"
                for n in 1 2 3; do dd if=/dev/urandom of="$2/f$n" bs=1M count=160 status=none & done; wait
                sync -f "$2"; cat "$2"/f? | sha256sum; echo 3 >/proc/sys/vm/drop_caches; cat "$2"/f? | sha256sum"""
            done = run("timeout", "-s", "KILL", "100", "sh", "-ec", script, "sh", cgroups[2].path, folder, timeout=110)
            before, after = done.stdout.split("\n")[:2]
            assert before == after and cgroups[2].peak() > WRITER_BYTES * 0.9
        used = [(cgroup.peak() // MIB, program.status("VmHWM") // MIB) for cgroup, program in zip(cgroups, (stack.ovsd, stack.edge))]
        print(f"MiB at most, with page cache and without: ovsd {used[0]}, ovsd-edge {used[1]}")
        assert (stack.ovsd.pid, stack.edge.pid) == pids and stack.ovsd.alive() and stack.edge.alive()
        assert stack.ovsd.status("VmHWM") < OVSD_BYTES and stack.edge.status("VmHWM") < EDGE_BYTES
        run("e2fsck", "-fn", device)

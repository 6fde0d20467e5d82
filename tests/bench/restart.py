#!/usr/bin/python3
"""From kill -9 to serving: from the start of ovsd's program to the first read that is answered over NBD, of each vDisk.

* Replay: a write buffer with --replay-mib of writes in it that nothing has left yet, written 1 MiB at a time, or 4 KiB at
  random. The speed is those bytes over all of the time. What the device gives is measured beside it in each round: fio, O_DIRECT,
  1 MiB at a time, 4 deep, on the same files.
* A vDisk of 1 TiB that is mapped (tests/bench/large.py), 64 MiB of it written anew just before.
* 100 vDisks, 1 MiB of each written just before: until the last of them answers.

Nothing was flushed. The page cache keeps neither write buffer nor registry: their files are dropped from it after the kill.
"""

import concurrent.futures
import contextlib
import functools
import os
import statistics
import time

import large
import load
from nbd_client import Connection, Failed, Gone
from report import Goal, Page, alternate, goals, spread, table
from stack import MIB, Stack

# Nothing leaves the write buffer before the kill.
KEPT = "buffer:\n  size: {buffer}MiB\nscrub:\n  automatic: false\ndestage:\n  size: 64GiB\n  after: 24h\nstop:\n  patience: 60s\n"
SMALL = KEPT.format(buffer=1024)
SHAPES = {"1 MiB writes": ["--rw=write", "--bs=1M", "--iodepth=4"], "4 KiB random writes": ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--norandommap=0"]}
VDISKS = 100
READ_SECONDS = 2


def drop_from_cache(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def answers(stack, name, begun, timeout_s=300):
    """When the vDisk answered a read, in seconds since then."""
    while True:
        try:
            with Connection(stack.nbd_socket, f"default/{name}", timeout_s) as connection:
                connection.read(0, 4096)
                return time.monotonic() - begun
        except (OSError, Gone, Failed):
            assert stack.ovsd.alive() and time.monotonic() - begun < timeout_s, stack.ovsd.tail()
            time.sleep(0.002)


def start_again(stack, names):
    """Kills ovsd and starts it: seconds until each vDisk answered."""
    stack.ovsd.kill9()
    drop_from_cache(stack.state / "buffer")
    drop_from_cache(stack.state / "registry")
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        begun = time.monotonic()
        stack.ovsd.start()
        return list(pool.map(lambda name: answers(stack, name, begun), names))


class Replay:
    """One vDisk with much in the write buffer."""

    def __init__(self, cleanups, options):
        self.size = options.replay_mib * MIB
        # When half of it is full all is sent out, and 4 KiB that come alone take 8.
        self.config = KEPT.format(buffer=5 * options.replay_mib)
        self.stack = Stack(config=self.config)
        cleanups.callback(self.stack.close, False)
        self.stack.start()
        self.stack.ask("POST", "/v1/vdisks", {"vpool": "default", "name": "v", "size_bytes": self.size})
        self.stack.ovsd.stop()
        self.slots = sorted((self.stack.state / "buffer").glob("*.seg"))

    def run(self, shape):
        stack = self.stack
        stack.restart()
        empty = start_again(stack, ["v"])[0]
        load.fio([load.nbd(stack.uri("v"))], [*SHAPES[shape], f"--io_size={self.size}"], self.size)
        kept = load.buffered(stack)
        took = start_again(stack, ["v"])[0]
        assert load.buffered(stack) >= kept > self.size / 2, f"{kept} of {self.size} bytes were in the write buffer"
        memory = stack.ovsd.status("VmHWM")
        stack.ovsd.stop(120)  # sends all of it out
        device = load.fio([["--ioengine=io_uring", "--direct=1", "--filename=" + ":".join(map(str, self.slots))]],
                          ["--rw=read", "--bs=1M", "--iodepth=4"], sum(path.stat().st_size for path in self.slots), READ_SECONDS).mb_s
        return {"seconds": took, "empty": empty, "mb": kept / 1e6, "speed": kept / 1e6 / took, "device": device, "memory": memory / MIB}


class Large:
    """A large vDisk, a little of it written."""

    def __init__(self, cleanups, options):
        self.stack = Stack(config=SMALL)
        cleanups.callback(self.stack.close, False)
        self.stack.start()
        self.clusters = options.clusters
        large.make(self.stack, options.clusters)

    def run(self):
        self.stack.restart()
        place = [load.nbd(self.stack.uri(large.NAME))]
        load.fio(place, ["--rw=randwrite", "--bs=4k", "--iodepth=32", f"--io_size={64 * MIB}"], self.clusters * 4096)
        took = start_again(self.stack, [large.NAME])[0]
        self.stack.ovsd.stop(120)
        return {"seconds": took}


class Hundred:
    """Many vDisks, a little of each written."""

    def __init__(self, cleanups):
        self.names = [f"v{number}" for number in range(VDISKS)]
        self.stack = Stack(config=SMALL)
        cleanups.callback(self.stack.close, False)
        self.stack.start()
        for name in self.names:
            self.stack.ask("POST", "/v1/vdisks", {"vpool": "default", "name": name, "size_bytes": 1 << 30})
        self.stack.ovsd.stop()

    def run(self):
        self.stack.restart()
        load.fio([load.nbd(self.stack.uri(name)) for name in self.names], ["--rw=randwrite", "--bs=4k", "--iodepth=4", f"--io_size={MIB}"], 1 << 30)
        took = start_again(self.stack, self.names)
        self.stack.ovsd.stop(120)
        return {"seconds": max(took), "first": min(took), "median": statistics.median(took)}


def judge(results, options):
    rows = []
    for shape in SHAPES:
        runs = results[shape]
        aim = statistics.median(one["device"] for one in runs) / 2
        rows.append(Goal(f"replay of {options.replay_mib} MiB, {shape}; aim: half of what the device reads", [one["speed"] for one in runs], "MB/s", 300,
                         round(aim), more_is_better=True, digits=0))
    rows.append(Goal(f"vDisk of {large.title(options.clusters)}", [one["seconds"] for one in results["large"]], "s", 2, 1, digits=2))
    rows.append(Goal(f"{VDISKS} vDisks, the last", [one["seconds"] for one in results["hundred"]], "s", 20, 10, digits=2))
    return goals(rows)


def details(results):
    named = {"seconds": ("s to the first read", 2), "empty": ("s with nothing in the write buffer", 2), "mb": ("MB in the write buffer", 0),
             "device": ("MB/s that the device reads", 0), "memory": ("MiB of memory at most", 0)}
    lines = [[title, *(spread([one[what] for one in results[shape]], digits) for shape in SHAPES)] for what, (title, digits) in named.items()]
    hundred = results["hundred"]
    first, half = (spread([one[what] for one in hundred], 2) for what in ("first", "median"))
    return table(["replay", *SHAPES], lines) + f"\n\nOf {VDISKS} vDisks the first answered after {first} s, half of them after {half} s."


def main():
    page = Page("restart", "From kill -9 to serving", __doc__, disk_gib=10, rounds=3)
    page.parser.add_argument("--replay-mib", type=int, default=512)
    page.parser.add_argument("--clusters", type=int, default=large.CLUSTERS, help="of the large vDisk")
    options = page.options()
    with contextlib.ExitStack() as cleanups:
        replay, large_vdisk, hundred = Replay(cleanups, options), Large(cleanups, options), Hundred(cleanups)
        cases = {shape: functools.partial(replay.run, shape) for shape in SHAPES} | {"large": large_vdisk.run, "hundred": hundred.run}
        results = {name: [] for name in cases}
        for number, name in alternate(options.rounds, cases):
            one = cases[name]()
            results[name].append(one)
            page.note(f"round {number + 1}/{options.rounds} {name}: " + ", ".join(f"{what} {value:.2f}" for what, value in one.items()))
    page.write("A start with an empty write buffer is in all of these times.", judge(results, options), details(results))


if __name__ == "__main__":
    main()

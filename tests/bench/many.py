#!/usr/bin/python3
"""64 vDisks, 8 deep each: all of them together against one, and their slowest operations against qemu-storage-daemon's.

4 KiB random writes and reads over NBD on one unix socket, 1 GiB in all whoever it is divided among. ovs: thin vDisks made for
the run for writes; for reads vDisks that were written before and have left the write buffer (1 GiB, as it comes), warm: read once just before, cold: the page
cache has nothing of the backend, and no block is read twice. qemu-storage-daemon: raw files written before, O_DIRECT, io_uring: always of the
device. A fresh server per run. Each vDisk has had one operation before: what the first costs is told apart (a
first write opens a vDisk's epoch on the backend). One vDisk also at the depth that the 64 have together: as
4 connections with 128 each, the most that a connection may have.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import load
from report import Goal, Page, alternate, goals, ratios, spread, table
from stack import GIB, MIB, Stack, wait_until

COUNT, DEPTH = 64, 8
TOTAL = GIB
WRITES, READS, COLD = "4 KiB random writes", "4 KiB random reads, warm", "4 KiB random reads, cold"
ROWS = {WRITES: ["--rw=randwrite", "--bs=4k", "--end_fsync=1"], READS: ["--rw=randread", "--bs=4k"], COLD: ["--rw=randread", "--bs=4k", "--norandommap=0"]}
# name: what it is, vDisks, connections to each, depth of each connection
TARGETS = {"one": ("ovs, one, 32 deep", 1, 1, 32), "one-deep": (f"ovs, one, {COUNT * DEPTH} deep", 1, 4, COUNT * DEPTH // 4),
           "many": (f"ovs, {COUNT}, {DEPTH} deep each", COUNT, 1, DEPTH),
           "qsd": (f"qemu-storage-daemon, {COUNT} raw files, {DEPTH} deep each", COUNT, 1, DEPTH)}


class Ovs:
    """vDisks of 1 GiB together: one and 64 that were written, and thin ones for each run."""

    def __init__(self):
        self.stack = Stack(config="")
        self.stack.start()
        self.count = 0
        for vdisks in (1, COUNT):
            names = self.make("filled", vdisks)
            for name in names:
                load.fill([load.nbd(self.stack.uri(name))], TOTAL // vdisks)
        wait_until("all has left the write buffer", lambda: load.buffered(self.stack) == 0, 120)
        self.stack.ovsd.stop()

    def make(self, prefix, count):
        names = [f"{prefix}-{count}-{number}" for number in range(count)]
        for name in names:
            self.stack.ask("POST", "/v1/vdisks", {"vpool": "default", "name": name, "size_bytes": TOTAL // count})
        return names

    @contextlib.contextmanager
    def serve(self, vdisks, row):
        self.stack.restart()
        self.count += 1
        reads = row != WRITES
        names = [f"filled-{vdisks}-{number}" for number in range(vdisks)] if reads else self.make(f"thin{self.count}", vdisks)
        try:
            wait_until("all are open", lambda: load.metric(self.stack, "ovs_vdisks_open") >= COUNT + 1, 60)
            places = [load.nbd(self.stack.uri(name)) for name in names]
            if row == READS:
                load.fio(places, ["--rw=read", "--bs=1M", "--iodepth=4"], TOTAL // vdisks)
            if row == COLD:
                self.drop_page_cache()
            yield places, self.stack.ovsd.pid
        finally:
            if not reads:
                wait_until("nobody is attached", lambda: load.metric(self.stack, "ovs_nbd_connections") == 0, 30)
                for name in names:
                    self.stack.ask("DELETE", f"/v1/vdisks/default:{name}?purge=true")
            self.stack.ovsd.stop()

    def drop_page_cache(self):
        for path in (self.stack.state / "backend").rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())  # what is not on the disk yet cannot be dropped
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self):
        self.stack.close(expect_clean=False)


class Qsd:
    """One qemu-storage-daemon with as many raw files."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ovs-bench-", dir="/var/tmp"))
        self.socket = self.folder / "qsd.sock"
        self.files = [self.folder / f"{number}.raw" for number in range(COUNT)]
        for path in self.files:
            load.fill([["--ioengine=psync", "--direct=1", f"--filename={path}"]], TOTAL // COUNT)

    @contextlib.contextmanager
    def serve(self, vdisks, _row):
        self.socket.unlink(missing_ok=True)
        argv = ["qemu-storage-daemon", "--nbd-server", f"addr.type=unix,addr.path={self.socket},max-connections=0"]
        for number, path in enumerate(self.files[:vdisks]):
            argv += ["--blockdev", f"driver=file,node-name=f{number},filename={path},cache.direct=on,aio=io_uring",
                     "--export", f"type=nbd,id=e{number},node-name=f{number},name=v{number},writable=on"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            wait_until("qemu-storage-daemon listens", self.socket.exists, 20)
            time.sleep(0.5)
            yield [load.nbd(f"nbd+unix:///v{number}?socket={self.socket}") for number in range(vdisks)], process.pid
        finally:
            process.terminate()
            process.wait(30)

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def measure(server, row, target, seconds):
    """The load, and the slowest of the first operations of each vDisk, all of them at once, in ms."""
    _, vdisks, connections, depth = TARGETS[target]
    with server.serve(vdisks, row) as (places, pid):
        first = load.fio(places, [*ROWS[row], "--io_size=4k"], TOTAL // vdisks)
        places = [place for place in places for _ in range(connections)]
        return load.fio(places, [*ROWS[row], f"--iodepth={depth}"], TOTAL // vdisks, seconds, {"server": pid}), max(first.latency_us) / 1000


def shares(results, row, above, below, figure):
    return ratios(*([figure(one) for one, _ in results[row, target]] for target in (above, below)))


def judge(results):
    rows = []
    for row in ROWS:
        iops = shares(results, row, "many", "one", lambda one: one.total)
        rows.append(Goal(f"{row}: IOPS of {COUNT} together, of those of one at depth 32", iops, "x", 0.8, 0.95, more_is_better=True, digits=2))
    for row in ROWS:
        p99 = shares(results, row, "many", "qsd", lambda one: one.percentile(0.99))
        rows.append(Goal(f"{row}: p99 of {COUNT}, of qemu-storage-daemon's", p99, "x", 1, 0.5, digits=2))
    return goals(rows)


def details(results, row):
    heads = ["", "IOPS together", "slowest over fastest job", "p50 µs", "p99 µs", "p99.9 µs", "server CPU µs per op",
             "fio CPU µs per op", "slowest first, ms"]
    cells = []
    for name, (title, *_) in TARGETS.items():
        runs, firsts = zip(*results[row, name])
        cells.append([title, spread([one.total for one in runs], 0), spread([min(one.iops) / max(one.iops) for one in runs], 2),
                      *(spread([one.percentile(share) for one in runs], 0) for share in (0.5, 0.99, 0.999)),
                      *(spread([one.cpu_us[who] for one in runs]) for who in ("server", "fio")), spread(firsts)])
    return f"## {row}\n\n" + table(heads, cells)


def main():
    page = Page("many", f"{COUNT} vDisks at once", __doc__, disk_gib=7, rounds=3, seconds=3)
    options = page.options()
    results = {(row, name): [] for row in ROWS for name in TARGETS}
    with contextlib.ExitStack() as cleanups:
        ovs, qsd = Ovs(), None
        cleanups.callback(ovs.close)
        qsd = Qsd()
        cleanups.callback(qsd.close)
        for row in ROWS:
            for number, name in alternate(options.rounds, TARGETS):
                one, first = measure(qsd if name == "qsd" else ovs, row, name, options.seconds)
                results[row, name].append((one, first))
                page.note(f"round {number + 1}/{options.rounds} {row:24} {name:9} {one.total:9,.0f} IOPS, p99 {one.percentile(0.99):9,.0f} µs, "
                          f"CPU {one.cpu_us['server']:.1f} µs; slowest first {first:.0f} ms")
    page.write(f"{TOTAL // MIB} MiB in all, {options.seconds} s a run.", judge(results), *(details(results, row) for row in ROWS))


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""The read cache: random reads of what is on the backend, with a cache in memory, on an SSD, too small, and without one.

4 KiB random reads, 32 deep and alike everywhere, over a vDisk of --mib that is on its backend, a directory, and no longer in the write buffer. A fresh ovsd
for each run, which has read all of the vDisk before, so that map and cache are warm. A directory whose files are in the kernel's page cache
is as quick as memory, and a read cache is for a backend that is not. So but for the run that says so, the page cache is kept empty of the backend's
files (POSIX_FADV_DONTNEED before and five times a second): what is not in the read cache is read from the device. How much was is beside
each figure: bytes that the device gave to ovsd, per read.

Not shown: a backend slower than this machine's disk, where a cache saves more, and an SSD faster than the backend. Here SSD and backend are the
same device, the SSD read with direct I/O and the backend through the page cache.
"""

import contextlib
import os
import threading
from typing import NamedTuple

import load
from report import Goal, Page, alternate, goals, ratios, spread, table
from stack import MIB, SMALL_BUFFER, Stack, wait_until

READ = ["--rw=randread", "--bs=4k", "--iodepth=32"]
DROP_EVERY_S = 0.2
PASSES = 20
TARGETS = {"device": "no cache, backend read from the device", "page-cache": "no cache, backend in the page cache", "memory": "cache: all of it in memory",
           "ssd": "cache: all of it on the SSD, a sixteenth in memory", "quarter": "cache: a quarter of it in memory"}


def configuration(target, size, ssd):
    """`cache:` of ovsd.yaml."""
    share = {"memory": 2 * size, "ssd": size // 16, "quarter": size // 4}.get(target)
    text = f"cache:\n  memory: {share // MIB}MiB\n" if share else ""
    return text + (f"  ssd: {{path: {ssd}, size: {2 * size // MIB}MiB}}\n" if target == "ssd" else "")


class Dropped:
    """The page cache without these files, as long as it lasts: what is read into it is dropped again soon."""

    def __init__(self, paths):
        self.paths = paths

    def __enter__(self):
        self.files = [os.open(path, os.O_RDONLY) for path in self.paths]
        for file in self.files:
            os.fsync(file)  # what is not on the disk yet cannot be dropped
        self.drop()
        self.end = threading.Event()
        self.thread = threading.Thread(target=self.keep_dropping)
        self.thread.start()

    def drop(self):
        for file in self.files:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def keep_dropping(self):
        while not self.end.wait(DROP_EVERY_S):
            self.drop()

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()
        for file in self.files:
            os.close(file)


class Counters(NamedTuple):
    """Of the cache, in clusters, and of the device, in bytes."""

    memory: float
    ssd: float
    misses: float
    device: int

    @staticmethod
    def of(stack, target):
        of_tier = lambda tier: load.metric(stack, rf'ovs_cache_hits_total\{{tier="{tier}"\}}')  # noqa: E731
        with open(f"/proc/{stack.ovsd.pid}/io") as lines:
            device = int(dict(line.split(": ") for line in lines)["read_bytes"])
        if target in ("device", "page-cache"):
            return Counters(0, 0, 0, device)
        return Counters(of_tier("memory"), of_tier("ssd") if target == "ssd" else 0, load.metric(stack, "ovs_cache_misses_total"), device)


class Figures(NamedTuple):
    load: load.Load
    memory_hits: float  # of all reads
    ssd_hits: float
    device_bytes: float  # per read

    @property
    def hits(self):
        return self.memory_hits + self.ssd_hits


class Ovs:
    """A vDisk that was written, all of it on the backend."""

    def __init__(self, size):
        self.size = size
        self.stack = Stack()
        self.ssd = self.stack.root / "ssd"
        self.ssd.mkdir()
        self.stack.start()
        self.stack.ask("POST", "/v1/vdisks", {"vpool": "default", "name": "v", "size_bytes": size})
        self.place = load.nbd(self.stack.uri("v"))
        load.fill([self.place], size)
        wait_until("all has left the write buffer", lambda: load.buffered(self.stack) == 0, 120)
        self.stack.ovsd.stop()

    def backend(self):
        return [path for path in (self.stack.state / "backend").rglob("*") if path.is_file()]

    def warm_up(self, target):
        """Reads all of it until the cache has what it can hold: an SSD takes it no faster than it is."""
        for _ in range(PASSES):
            load.fio([self.place], ["--rw=read", "--bs=1M", "--iodepth=4"], self.size)
            if target not in ("memory", "ssd") or load.metric(self.stack, "ovs_cache_entries") >= self.size // 4096:
                break
        else:
            raise AssertionError(f"after {PASSES} passes the cache has {load.metric(self.stack, 'ovs_cache_entries'):.0f} of {self.size // 4096} clusters")
        if target == "quarter":
            load.fio([self.place], [*READ, f"--io_size={self.size}"], self.size)

    def measure(self, target, seconds):
        stack = self.stack
        stack.configure(SMALL_BUFFER + configuration(target, self.size, self.ssd))
        stack.restart()
        try:
            self.warm_up(target)
            with contextlib.nullcontext() if target == "page-cache" else Dropped(self.backend()):
                before = Counters.of(stack, target)
                done = load.fio([self.place], READ, self.size, seconds, {"ovsd": stack.ovsd.pid})
                memory, ssd, misses, device = (now - then for now, then in zip(Counters.of(stack, target), before))
            asked = max(1, memory + ssd + misses)
            return Figures(done, memory / asked, ssd / asked, device / done.operations)
        finally:
            stack.ovsd.stop()

    def close(self):
        self.stack.close(expect_clean=False)


def judge(results):
    totals = lambda target: [one.load.total for one in results[target]]  # noqa: E731
    ratio = lambda target, base: ratios(totals(target), totals(base))  # noqa: E731
    cached = ("memory", "ssd", "quarter")
    rows = [Goal(f"{TARGETS[target]}: reads per second, of those from the device", ratio(target, "device"), "x", digits=2) for target in cached]
    rows.append(Goal(f"{TARGETS['memory']}: reads per second, of those from the page cache", ratio("memory", "page-cache"), "x", digits=2))
    rows += [Goal(f"{TARGETS[target]}: found there", [100 * one.hits for one in results[target]], "%") for target in cached]
    rows += [Goal(f"{title}: CPU of ovsd per read", [one.load.cpu_us["ovsd"] for one in results[target]], "µs") for target, title in TARGETS.items()]
    return goals(rows)


def details(results):
    heads = ["", "IOPS", "p50 µs", "p99 µs", "found in memory, %", "found on the SSD, %", "bytes from the device per read", "fio CPU µs per read"]
    lines = []
    for target, title in TARGETS.items():
        runs = results[target]
        loads = [one.load for one in runs]
        lines.append([title, spread([one.total for one in loads], 0), *(spread([one.percentile(share) for one in loads], 0) for share in (0.5, 0.99)),
                      spread([100 * one.memory_hits for one in runs]), spread([100 * one.ssd_hits for one in runs]),
                      spread([one.device_bytes for one in runs], 0), spread([one.cpu_us["fio"] for one in loads])])
    return table(heads, lines)


def main():
    page = Page("cache", "The read cache", __doc__, disk_gib=6, rounds=3, seconds=3)
    page.parser.add_argument("--mib", type=int, default=1024, help="how much the vDisk holds")
    options = page.options()
    results = {target: [] for target in TARGETS}
    ovs = Ovs(options.mib * MIB)
    try:
        for number, target in alternate(options.rounds, TARGETS):
            one = ovs.measure(target, options.seconds)
            results[target].append(one)
            page.note(f"round {number + 1}/{options.rounds} {target:10} {one.load.total:9,.0f} IOPS, {100 * one.hits:5.1f} % found, "
                      f"{one.device_bytes:5.0f} bytes of the device and {one.load.cpu_us['ovsd']:.1f} µs CPU per read")
    finally:
        ovs.close()
    page.write(f"{options.mib} MiB, 4 KiB random reads, 32 deep, {options.seconds} s a run. The page cache is kept empty of the backend's "
               "files, but for the rows that say otherwise. SSD and backend are the same device: a cache saves more where the backend is slower than that.", judge(results),
               details(results))


if __name__ == "__main__":
    main()

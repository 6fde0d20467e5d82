#!/usr/bin/python3
"""`make bench`: ovs over NBD beside what one would use instead, in alternation.

    bench.py [--quick] [--gate] [--rounds N] [--seconds S] [--targets a,b] [--rows a,b] [--out FILE]

In every round each target has its turn with a fresh server process; odd rounds go in the reverse order, so that a machine
that gets busier or warmer wrongs nobody. Medians and [min-max] over the rounds; ratios are of medians. On a busy
machine the server's CPU time per operation is the number to compare: it moves far less than IOPS do.

Writes go to a thin disk made for the run, or to a fresh clone of 1 GiB written before; reads to 1 GiB written before and read once. Of the others,
file and raw are written before, their best case; qcow2 is there twice: as it comes (thin: a new image for each run, or an
overlay of one), and allocated (all of that 1 GiB written before). Disk bytes per client byte: what the
server's threads gave to block devices, with everything buffered sent on at the end. The chart beside the table shows IOPS
as shares of qemu-nbd's with a raw file. --gate: exit code 1 where a read or write costs more CPU than with qemu-nbd on the machine
that the limits were measured on; nothing else is the same on a machine that others use.
"""

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from chart import svg
from report import PAGES, Goal, Page, goals, middle, ratios, spread, table  # which finds the integration tests' modules
from stack import GIB, MIB, Stack, run, wait_until

DISK, WORKING_SET = 4 * GIB, 1 * GIB

ROWS = {  # name: what it is, fio's options
    "write-4k-qd32": ("4 KiB random writes, 32 deep, one flush at the end",
                      ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--end_fsync=1"]),
    "write-4k-flush": ("4 KiB random writes, each with a flush",
                       ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"]),
    "write-4k-clone": ("4 KiB random writes, 32 deep, to a fresh clone",
                       ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--end_fsync=1"]),
    "write-4k-flush32": ("4 KiB random writes, 32 deep, a flush every 32",
                         ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32"]),
    "write-4k-16conn": ("16 connections, 4 KiB random writes, each with a flush",
                        ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1", "--numjobs=16", "--group_reporting"]),
    "read-4k-qd1": ("4 KiB random reads, one at a time", ["--rw=randread", "--bs=4k", "--iodepth=1"]),
    "read-4k-qd32": ("4 KiB random reads, 32 deep", ["--rw=randread", "--bs=4k", "--iodepth=32"]),
    "write-1m": ("1 MiB sequential writes, 4 deep, one flush at the end", ["--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"]),
    "read-1m": ("1 MiB sequential reads, 4 deep", ["--rw=read", "--bs=1M", "--iodepth=4"]),
}
QUICK_ROWS = ["write-4k-qd32", "read-4k-qd32"]
QUICK_TARGETS = ["nbdkit-null", "qemu-nbd-raw", "ovs"]


class Limit(NamedTuple):
    """What ovs has to reach in a row, and what we want: IOPS of a target's or of one of its own rows, or a cost per operation."""

    row: str
    of: str
    must: float | None
    aim: float | None


LIMITS = [
    Limit("write-4k-qd32", "qcow2-thin", 1.5, 3),
    Limit("write-4k-qd32", "qcow2-allocated", None, 2),
    Limit("write-4k-clone", "qcow2-thin", 2, 4),
    Limit("write-4k-clone", "write-4k-qd32", 0.85, 0.95),
    Limit("write-4k-flush", "qemu-nbd-raw", 0.9, 1.3),
    Limit("write-4k-flush", "qcow2-thin", 1.8, None),
    Limit("write-4k-flush32", "qcow2-allocated", 1, 2),
    Limit("write-4k-16conn", "qemu-nbd-raw", 1, 2),
    Limit("read-4k-qd1", "qemu-nbd-raw", 0.9, 1.2),
    Limit("read-4k-qd32", "qemu-nbd-raw", 0.9, 1.5),
    Limit("write-1m", "qemu-nbd-raw", 0.4, 0.8),
    Limit("read-1m", "qemu-nbd-raw", 0.8, 1),
    # What qemu-nbd took on the machine that the limits were measured on.
    Limit("write-4k-qd32", "cpu_us", 33, 15),
    Limit("read-4k-qd32", "cpu_us", 18, 8),
    Limit("write-4k-flush", "disk_bytes", 3.5, 3.1),
    Limit("write-4k-qd32", "disk_bytes", 2.3, 2.1),
]
COSTS = {"cpu_us": ("server CPU per operation", "µs", 1), "disk_bytes": ("disk bytes per client byte", "", 2)}


class Target:
    """Something to run fio against. `open` gives fio's options and the server's pid (None: there is no server)."""

    def __init__(self, folder):
        self.folder = folder
        self.socket = folder / "bench.sock"

    @staticmethod
    def has(row):
        """Whether it takes part in this row."""
        return True

    @contextlib.contextmanager
    def server(self, *argv, uri=None):
        self.socket.unlink(missing_ok=True)
        process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True)
        try:
            def ready():
                assert process.poll() is None, f"{argv[0]} died: {process.stderr.read()}"
                return self.socket.exists()

            wait_until(f"{argv[0]} listens", ready, 20, every_s=0.02)
            time.sleep(0.2)
            yield ["--ioengine=nbd", f"--uri={uri or f'nbd+unix:///?socket={self.socket}'}"], process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def raw_file(self):
        """A file with WORKING_SET bytes of data in it, made once."""
        path = self.folder / "raw.img"
        if not path.exists():
            part = self.folder / "raw.part"
            with open(part, "wb") as file:
                file.truncate(DISK)
            run("fio", "--name=fill", f"--filename={part}", f"--size={WORKING_SET}", "--bs=1M", "--rw=write", "--direct=1",
                "--ioengine=psync", "--end_fsync=1", timeout=300)
            part.rename(path)
        return path


class File(Target):
    title = "file, O_DIRECT"

    @contextlib.contextmanager
    def open(self, row):
        yield ["--ioengine=io_uring", "--direct=1", f"--filename={self.raw_file()}"], None


class NbdkitNull(Target):
    title = "nbdkit null"

    def open(self, row):
        return self.server("nbdkit", "-f", "-U", self.socket, "null", DISK)


class NbdkitFile(Target):
    title = "nbdkit file (page cache)"

    def open(self, row):
        return self.server("nbdkit", "-f", "-U", self.socket, "file", self.raw_file())


class QemuRaw(Target):
    title = "qemu-nbd raw"

    def open(self, row):
        return self.server("qemu-nbd", "-f", "raw", "-k", self.socket, "-t", "-e", "16", "--discard=unmap", "--cache=none",
                           "--aio=io_uring", self.raw_file())


class Qcow2(Target):
    """Subclasses say which image, and in which rows they take part."""

    options = ["-o", "cluster_size=64k,lazy_refcounts=on"]

    def allocated(self):
        """An image with the raw file's data, made once."""
        image = self.folder / "allocated.qcow2"
        if not image.exists():
            part = self.folder / "allocated.part"
            run("qemu-img", "create", "-q", "-f", "qcow2", *self.options, part, DISK)
            run("qemu-img", "convert", "-n", "-S", "0", "-f", "raw", "-O", "qcow2", "-t", "none", "-T", "none", self.raw_file(), part,
                timeout=300)
            part.rename(image)
        return image

    def open(self, row):
        return self.server("qemu-nbd", "-f", "qcow2", "-k", self.socket, "-t", "-e", "16", "--discard=unmap", "--cache=none",
                           "--aio=io_uring", self.image(row))


class Qcow2Thin(Qcow2):
    title = "qemu-nbd qcow2 (thin)"

    @staticmethod
    def has(row):
        return row.startswith("write")

    def image(self, row):
        image = self.folder / "thin.qcow2"
        image.unlink(missing_ok=True)
        overlay = ["-b", self.allocated(), "-F", "qcow2"] if row == "write-4k-clone" else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *self.options, *overlay, image, DISK)
        return image


class Qcow2Allocated(Qcow2):
    title = "qemu-nbd qcow2 (allocated)"

    @staticmethod
    def has(row):
        return row != "write-4k-clone"

    def image(self, row):
        return self.allocated()


class Ovs(Target):
    title = "**ovs**"

    def __init__(self, folder):
        super().__init__(folder)
        self.stack = None
        self.count = 0

    @contextlib.contextmanager
    def open(self, row):
        if self.stack is None:
            self.stack = Stack()
            self.stack.start()
            self.stack.create("filled", str(DISK))
            run("fio", "--name=fill", "--ioengine=nbd", f"--uri={self.stack.uri('filled')}", "--thread", f"--size={WORKING_SET}", "--bs=1M",
                "--rw=write", "--iodepth=4", "--end_fsync=1", timeout=300)
            self.stack.ovsd.stop()
        if not self.stack.ovsd.alive():
            self.stack.restart()
        if row.startswith("read"):
            name = "filled"
        else:
            self.count += 1
            name = f"thin-{self.count}"
            if row == "write-4k-clone":
                self.stack.ovs("vdisk", "clone", "default/filled", f"default/{name}")
            else:
                self.stack.create(name, str(DISK))
        self.name = name
        time.sleep(0.2)
        try:
            yield ["--ioengine=nbd", f"--uri={self.stack.uri(name)}"], self.stack.ovsd.pid
        finally:
            if name != "filled":
                wait_until("nobody is attached", lambda: self.stack.show(name)["attachment_count"] == 0, 30)
                self.stack.rpc("DELETE", f"/v1/vdisks/default:{name}?purge=true")
            self.stack.ovsd.stop()

    def send_on(self):
        """Waits until nothing is in the write buffer only."""
        wait_until("everything has left", lambda: self.stack.show(self.name)["buffered_bytes"] == 0, 60)

    def close(self):
        if self.stack:
            self.stack.close(expect_clean=False)


TARGETS = {"file": File, "nbdkit-null": NbdkitNull, "nbdkit-file": NbdkitFile, "qemu-nbd-raw": QemuRaw, "qcow2-thin": Qcow2Thin,
           "qcow2-allocated": Qcow2Allocated, "ovs": Ovs}


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written_bytes(pid):
    """What the process has given to block devices."""
    with open(f"/proc/{pid}/io") as counters:
        return int(dict(line.split(": ") for line in counters)["write_bytes"])


def memory_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))


def measure(target, row, seconds):
    with target.open(row) as (where, pid):
        if row.startswith("read"):
            # Once, so that it is in the caches of those who have any: what was written in large pieces went past the page cache.
            run("fio", "--name=warm", f"--size={WORKING_SET}", "--thread", *where, "--rw=read", "--bs=1M", "--iodepth=4", timeout=120)
        before, written = (cpu_seconds(pid), written_bytes(pid)) if pid else (0, 0)
        done = run("fio", "--name=job", f"--size={WORKING_SET}", "--randrepeat=0", "--norandommap", "--thread", "--output-format=json",
                   "--time_based", f"--runtime={seconds}", *where, *ROWS[row][1], timeout=seconds + 120)
        used, memory = (cpu_seconds(pid) - before, memory_bytes(pid)) if pid else (None, None)
        if pid and row.startswith("write"):
            getattr(target, "send_on", lambda: None)()
            written = written_bytes(pid) - written
        else:
            written = None
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    assert job["error"] == 0, done.stdout
    side = job["read" if row.startswith("read") else "write"]
    latency = side["clat_ns"]["percentile"]
    has_flushes = row in ("write-4k-flush", "write-4k-16conn")
    sync = job.get("sync", {}).get("lat_ns", {}).get("percentile", {}) if has_flushes else {}
    # With the last flush in it; of several jobs it is the sum.
    took = job["job_runtime"] / 1000 / (16 if row == "write-4k-16conn" else 1)
    return {
        "iops": side["total_ios"] / took,
        "mb_s": side["io_bytes"] / took / 1e6,
        "p50_us": (latency["50.000000"] + sync.get("50.000000", 0)) / 1000,
        "p99_us": (latency["99.000000"] + sync.get("99.000000", 0)) / 1000,
        "cpu_us": None if used is None else used * 1e6 / max(1, side["total_ios"]),
        "disk_bytes": None if written is None else written / max(1, side["io_bytes"]),
        "memory_mib": None if memory is None else memory / MIB,
    }


def judge(results):
    """The limits of those rows and targets that took part."""
    rows = []
    for row, of, must, aim in LIMITS:
        ours, title = results.get(row, {}).get("ovs", []), ROWS[row][0]
        if not ours:
            continue
        if of in COSTS:
            what, unit, digits = COSTS[of]
            rows.append(Goal(f"{title}: {what}", [one[of] for one in ours], unit, must, aim, digits=digits))
            continue
        if of in ROWS:
            theirs, whose = results.get(of, {}).get("ovs", []), "of those to a thin disk"
        else:
            theirs, whose = results[row].get(of, []), f"of {TARGETS[of].title}"
        if theirs:
            rows.append(Goal(f"{title}: {whose}", ratios([one["iops"] for one in ours], [other["iops"] for other in theirs]), "x", must, aim,
                             more_is_better=True, digits=2))
    return goals(rows)


def details(results, row, targets):
    is_large = row.endswith("1m")
    heads = ["", "MB/s" if is_large else "IOPS", "of the file's", "of qemu-nbd raw's", "p50 µs", "p99 µs", "server CPU µs per op"]
    heads += ["disk bytes per client byte"] if row.startswith("write") else []
    heads += ["memory MiB"]
    lines = []
    for name in targets:
        found = results[row].get(name, [])
        if not found:
            continue
        cells = [TARGETS[name].title, spread([one["mb_s" if is_large else "iops"] for one in found], 0)]
        for base in ("file", "qemu-nbd-raw"):
            share = ratios([one["iops"] for one in found], [one["iops"] for one in results[row].get(base, [])])
            cells.append(f"{middle(share):.2f}" if share else "-")
        cells += [spread([one["p50_us"] for one in found], 0), spread([one["p99_us"] for one in found], 0), spread([one["cpu_us"] for one in found])]
        cells += [spread([one["disk_bytes"] for one in found], 2)] if row.startswith("write") else []
        cells.append(spread([one["memory_mib"] for one in found], 0))
        lines.append(cells)
    return f"## {ROWS[row][0]}\n\n" + table(heads, lines)


def chart(results, rows, targets):
    base = "qemu-nbd-raw"

    def share(row, name):
        found = ratios([one["iops"] for one in results[row].get(name, [])], [one["iops"] for one in results[row].get(base, [])])
        return middle(found) if found else None

    shown = [(ROWS[row][0], {name: share(row, name) for name in targets}) for row in rows]
    names = {name: TARGETS[name].title.strip("*") for name in targets}
    return svg("NBD over a unix socket: operations per second", f"{TARGETS[base].title} is 1; longer is better", shown, names)


def check_gates(results):
    """Names the rows that cost too much."""
    exceeded = []
    for row, of, must, _ in LIMITS:
        if of == "cpu_us" and results.get(row, {}).get("ovs"):
            cost = statistics.median(one[of] for one in results[row]["ovs"])
            print(f"gate: {row}: {cost:.1f} µs CPU per operation, {must} at most")
            exceeded += [row] if cost > must else []
    return exceeded


def main():
    page = Page("nbd", "NBD beside the usual choices", __doc__, disk_gib=7, rounds=5, seconds=3)
    page.parser.set_defaults(rounds=None, seconds=None, out=None)  # --quick has its own
    page.parser.add_argument("--quick", action="store_true", help="two rows, three targets, two rounds of 2 s; to the screen only")
    page.parser.add_argument("--gate", action="store_true", help="fail where ovs takes more CPU per operation than it may")
    page.parser.add_argument("--targets", help=", ".join(TARGETS))
    page.parser.add_argument("--rows", help=", ".join(ROWS))
    options = page.options()
    to_screen = options.quick and not options.out
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (2 if options.quick else 3)
    options.out = options.out or PAGES / "nbd.md"
    names = options.targets.split(",") if options.targets else QUICK_TARGETS if options.quick else list(TARGETS)
    rows = options.rows.split(",") if options.rows else QUICK_ROWS if options.quick else list(ROWS)

    folder = pathlib.Path(tempfile.mkdtemp(prefix="ovs-bench-", dir="/var/tmp"))
    targets = {name: TARGETS[name](folder) for name in names}
    results = {row: {name: [] for name in names} for row in rows}
    try:
        for number in range(options.rounds):
            for row in rows:
                for name in names if number % 2 == 0 else names[::-1]:
                    if not targets[name].has(row):
                        continue
                    one = measure(targets[name], row, options.seconds)
                    results[row][name].append(one)
                    cpu = "" if one["cpu_us"] is None else f", CPU {one['cpu_us']:.1f} µs/op"
                    page.note(f"round {number + 1}/{options.rounds} {row:16} {name:15} {one['iops']:9,.0f} IOPS, p50 {one['p50_us']:,.0f} µs{cpu}")
    finally:
        for target in targets.values():
            getattr(target, "close", lambda: None)()
        shutil.rmtree(folder, ignore_errors=True)

    sections = [f"{options.seconds} s a run. {WORKING_SET // MIB} MiB of a {DISK // GIB} GiB disk, all of it in caches. p50 and p99 are "
                "of an operation and its flush where each has one. qcow2: thin is a new image for each run, or an overlay where ovs has a clone; "
                "allocated is one that was written before.", judge(results), *(details(results, row, names) for row in rows)]
    if to_screen:
        print("\n" + page.text(*sections))
    else:
        sections.insert(1, "![operations per second as shares of qemu-nbd raw's](nbd.svg)")
        page.write(*sections)
        options.out.with_suffix(".svg").write_text(chart(results, rows, names))
    if options.gate and check_gates(results):
        sys.exit(1)


if __name__ == "__main__":
    main()

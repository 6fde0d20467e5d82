#!/usr/bin/python3
"""Coded backends: policy (4,2), acknowledged with 5 of 6, over six directories, beside one directory without coding.

* The backend alone (core/backend/examples/coded.rs): objects of 64 MiB, and for comparison of 4 MiB, as SCOs are unless ovsd.yaml says otherwise; as many puts at
  once as a vDisk has (4), until every fragment is stored; reads of 1 MiB, 4 at once, in order. The page cache has nothing of what is read. A drive
  that is gone answers nothing but errors, as a directory that is not there does; where one is slow, it answers each read 100 ms late.
* Rebuild: of six drives one is lost and an empty one added, and all objects are looked after until there is nothing left to do. It is counted twice: bytes of
  objects that are whole again per second, of those that are written per second; and bytes of fragments that are put for it per second, of those that
  a write puts. (Of each object a sixth is made again, from four sixths that are read.)
* Guests beside a rebuild: once more a drive is lost and an empty one added; all objects are read before what was on it is made again, and meanwhile.
* Coding's share of the CPU: samples of `perf` in functions of Reed-Solomon, of all samples of a process that writes; without perf, or where it has no
  names, CPU time of the same code over as many bytes and nothing else, of that of the write. The second is always shown.
* A cold read: 4 KiB of an object that nothing is known of, counted at the drives. One that gives more than 4 KiB gives frames; all else are headers and indexes.
* Over NBD: vPools on one directory and on the six (LZ4 and AES-256-GCM), a fresh ovsd for each run and a fresh vDisk for each write, which
  is over when the write buffer has nothing of it any more. While flushes are measured, what was written leaves for the backend every second (destage.after), so
  that coding and encryption are at work beside them. What is noise in their latency, a vPool on another directory shows.

All directories are on the same device: six of them are no faster than one, and (4,2) writes 1.5 bytes for each.
"""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
import time
import types

import bench  # which finds the integration tests' modules
import load
from report import Goal, Page, alternate, goals, ratios, run, spread, table
from restart import drop_from_cache
from stack import BIN, MIB, ROOTS, Stack, wait_until

PROGRAM = BIN / "examples/coded"
OBJECT_MIB, SCO_MIB = 64, 4
READS = {"read": "healthy", "without-1": "one drive gone", "without-2": "two drives gone", "slow": "one drive 100 ms late"}
STEPS = {**{step: f"read, {title}" for step, title in READS.items()}, "beside": "read, a drive is rebuilt meanwhile"}
# name: what it is, kind, content, size of objects, steps: the first and the last stay where they are
CASES = {"one": ("one directory", "one", "random", OBJECT_MIB, ["write", "read"]),
         "plain": ("(4,2)", "plain", "random", OBJECT_MIB, ["write", *READS, "cold", "encode", "rebuild", "beside"]),
         "sealed": ("(4,2), LZ4, AES-256-GCM", "sealed", "random", OBJECT_MIB, ["write", "read", "cold"]),
         "plain-half": ("(4,2), half-compressible", "plain", "half", OBJECT_MIB, ["write", "read"]),
         "sealed-half": ("(4,2), LZ4, AES-256-GCM, half-compressible", "sealed", "half", OBJECT_MIB, ["write", "read"]),
         "one-sco": (f"one directory, objects of {SCO_MIB} MiB", "one", "random", SCO_MIB, ["write", "read"]),
         "plain-sco": (f"(4,2), objects of {SCO_MIB} MiB", "plain", "random", SCO_MIB, ["write", "read"])}
CODING = re.compile("galois|reed_?solomon|gal_mul", re.IGNORECASE)
SHARE = re.compile(r"^\s*([0-9.]+)%\s+(\[.\]\s+)?(.*\S)")
TOP = 12

VPOOLS = {"one": "one directory", "again": "another directory", "coded": "(4,2), LZ4, AES-256-GCM"}
SEQUENTIAL = ["--bs=1M", "--iodepth=4"]
# Data leaves the write buffer while flushes are measured, not only behind them.
MEANWHILE = "destage:\n  after: 1s\n"
# The last of a write does not wait for more.
SOON = "destage:\n  after: 300ms\n"


class Alone:
    """The backend without ovsd. What a run leaves is made empty; files are removed when everything was measured, since without a journal ext4
    looks for inodes much longer for some minutes after some were removed."""

    def __init__(self, mib):
        self.mib, self.numbers = mib, itertools.count()
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="ovs-bench-", dir=ROOTS))

    @contextlib.contextmanager
    def argv(self, case, steps):
        _, kind, content, object_mib, _ = CASES[case]
        folder = self.root / str(next(self.numbers))
        try:
            yield [PROGRAM, folder, kind, content, self.mib, object_mib, *steps]
        finally:
            for path in folder.rglob("*"):
                if path.is_file():
                    os.truncate(path, 0)

    def measure(self, case, number):
        """What each step found, by its name."""
        first, *others = CASES[case][-1]
        others, last = (others[:-2], others[-2:]) if "rebuild" in others else (others, [])
        with self.argv(case, [first, *(others if number % 2 == 0 else others[::-1]), *last]) as argv:
            done = run(*argv, timeout=300)
        found = map(json.loads, done.stdout.splitlines())
        return {one.pop("step"): one for one in found}

    def profile(self):
        """A write's samples per function, in %; nothing where perf is not there, or has no names."""
        if not shutil.which("perf"):
            return {}
        data = self.root / "perf.data"
        with self.argv("plain", ["write"]) as argv:
            done = run("perf", "record", "-q", "-F", "499", "-e", "cpu-clock", "-o", data, "--", *argv, timeout=300, check=False)
        report = run("perf", "report", "-i", data, "--stdio", "-q", "--no-children", "-F", "overhead,symbol", timeout=300, check=False)
        if done.returncode != 0 or report.returncode != 0:
            return {}
        found = {}
        for line in report.stdout.splitlines():
            if match := SHARE.match(line):
                found[match[3]] = found.get(match[3], 0) + float(match[1])
        return found if any(CODING.search(name) for name in found) else {}

    def close(self):
        shutil.rmtree(self.root, ignore_errors=True)


class Ovs:
    """One ovsd with a vPool on a directory, one on another, and one on a composite of six."""

    def __init__(self, size):
        self.size, self.numbers = size, itertools.count()
        self.stack = stack = Stack()
        try:
            stack.start()
            self.drives = stack.root / "drives"
            self.add("one", "again", *(f"d{number}" for number in range(6)))
            key = stack.root / "etc/ovs/secrets/keys/bench"
            key.parent.mkdir(parents=True)
            key.touch(0o600)
            key.write_text("5ec2e700" * 8)
            stack.ovs("preset", "create", "wide", "--policy", "4,2,5,6", "--compression", "lz4", "--encryption", "aes-256-gcm", "--key-file", key)
            stack.ovs("backend", "create", "coded", "--of", ",".join(f"d{number}" for number in range(6)), "--preset", "wide")
            for vpool in VPOOLS:
                stack.ovs("vpool", "create", vpool, "--backend", vpool)
            stack.ovsd.stop()
        except BaseException:
            self.close()
            raise

    def add(self, *names):
        for name in names:
            self.stack.ovs("backend", "create", name, "--path", self.drives / name, "--node", "n1")

    def vdisk(self, vpool, size):
        """On an ovsd that runs. It stays: see Alone."""
        name = f"v{next(self.numbers)}"
        self.stack.ask("POST", "/v1/vdisks", {"vpool": vpool, "name": name, "size_bytes": size})
        return load.nbd(self.stack.uri(name, vpool))

    @contextlib.contextmanager
    def runs(self, config):
        self.stack.configure(config)
        self.stack.restart()
        try:
            yield self.stack.ovsd
        finally:
            self.stack.ovsd.stop(120)

    def sequential(self, vpool):
        """MB/s, and ms of ovsd's CPU per MiB, of a write until it is on the backend, and of a read of it."""
        mib = self.size / MIB
        with self.runs(SOON) as ovsd:
            place = self.vdisk(vpool, self.size)
            begun, cpu = time.monotonic(), bench.cpu_seconds(ovsd.pid)
            load.fio([place], ["--rw=write", *SEQUENTIAL], self.size)
            wait_until("all has left the write buffer", lambda: load.buffered(self.stack) == 0, 300, every_s=0.02)
            write, write_cpu = self.size / (time.monotonic() - begun) / 1e6, bench.cpu_seconds(ovsd.pid) - cpu
        drop_from_cache(self.drives)
        with self.runs(SOON) as ovsd:
            done = load.fio([place], ["--rw=read", *SEQUENTIAL], self.size, servers={"ovsd": ovsd.pid})
        return {"write": write, "write_cpu": write_cpu * 1000 / mib, "read": done.mb_s, "read_cpu": done.cpu_us["ovsd"] / 1000}

    def flush(self, vpool, seconds):
        """4 KiB at a time, a flush after each."""
        @contextlib.contextmanager
        def opened(_row):
            with self.runs(MEANWHILE) as ovsd:
                yield self.vdisk(vpool, bench.WORKING_SET), ovsd.pid

        return bench.measure(types.SimpleNamespace(open=opened), "write-4k-flush", seconds)

    def close(self):
        self.stack.close(expect_clean=False)


def judge(results, profiles, vpools):
    def of(case, step, what="mb_s"):
        return [one[step][what] for one in results[case]]

    def share(above, below):
        return ratios(of(*above), of(*below))

    def over_nbd(what, above, below="one"):
        return ratios(*([one[what] for one in vpools[vpool]] for vpool in (above, below)))

    encoding = ratios([100 * one for one in of("plain", "encode", "cpu_seconds")], of("plain", "write", "cpu_seconds"))
    sampled = [sum(share for name, share in one.items() if CODING.search(name)) for one in profiles if one]
    better = {"more_is_better": True, "digits": 2}
    rows = [Goal("sequential write, of one directory", share(("plain", "write"), ("one", "write")), "x", 0.5, **better),
            Goal(f"the same, objects of {SCO_MIB} MiB", share(("plain-sco", "write"), ("one-sco", "write")), "x", **better),
            Goal(f"coding, of the CPU of that, {'samples' if sampled else 'measured by itself'}", sampled or encoding, "%", 10)]
    rows += [Goal(f"sequential read, {READS[step]}, of a healthy one", share(("plain", step), ("plain", "read")), "x", must, **better)
             for step, must in (("without-1", 0.6), ("without-2", 0.6), ("slow", None))]
    written = of("plain", "write", "stored_bytes"), of("plain", "write", "seconds")
    made = of("plain", "rebuild", "made_bytes"), of("plain", "rebuild", "seconds")
    per_second = [[one / seconds for one, seconds in zip(*side)] for side in (made, written)]
    rows += [Goal("rebuild: bytes of objects per second, of a sequential write", share(("plain", "rebuild"), ("plain", "write")), "x", 0.3, **better),
             Goal("rebuild: bytes of fragments put per second, of a sequential write", ratios(*per_second), "x", **better)]
    rows.append(Goal("sequential read while a drive is rebuilt, of the same while it is not", ratios(of("plain", "beside"), of("plain", "beside", "alone_mb_s")), "x", 0.7, **better))
    cold = [one["cold"]["first"] for case in ("plain", "sealed") for one in results[case]]
    rows += [Goal("cold read of 4 KiB: fragments of which frames are read, at most", [one["drives"] for one in cold], "", 1, digits=0),
             Goal("cold read of 4 KiB: bytes of that, at most", [one["frames_bytes"] / 1024 for one in cold], "KiB", 64)]
    for content, ending in (("incompressible", ""), ("half-compressible", "-half")):
        rows += [Goal(f"LZ4 and AES-256-GCM, {content}: sequential {step}, of that without", share((f"sealed{ending}", step), (f"plain{ending}", step)), "x", 0.75, **better)
                 for step in ("write", "read")]
    rows += [Goal("write and flush over NBD, p50, of one directory's", over_nbd("p50_us", "coded"), "x", 1.1, digits=2),
             Goal("the same, of another directory: noise", over_nbd("p50_us", "again"), "x", digits=2),
             Goal("write and flush over NBD, p99, of one directory's", over_nbd("p99_us", "coded"), "x", digits=2),
             Goal("the same, of another directory: noise", over_nbd("p99_us", "again"), "x", digits=2)]
    rows += [Goal(f"sequential {what} over NBD, of one directory's", over_nbd(what, "coded"), "x", **better) for what in ("write", "read")]
    return goals(rows)


def details(results):
    lines = []
    for case, (title, *_, steps) in CASES.items():
        for step in steps:
            found = [one[step] for one in results[case]]
            if step == "cold":
                continue
            cpu = [one["cpu_seconds"] * 1000 / (one["bytes"] / MIB) for one in found]
            latency = [spread([one[what] for one in found]) if what in found[0] else "-" for what in ("p50_ms", "p99_ms")]
            lines.append([title, STEPS.get(step, step), spread([one["mb_s"] for one in found], 0), spread(cpu, 2), *latency])
    return "## The backend alone\n\n" + table(["", "", "MB/s of objects", "CPU ms per MiB", "p50 ms", "p99 ms"], lines)


def details_cold(results):
    columns = {"calls": ("calls", 0), "bytes": ("bytes", 0), "drives": ("drives that give frames", 0), "frames_bytes": ("bytes of these", 0),
               "headers_bytes": ("bytes of the others", 0), "p50_ms": ("p50 ms", 2)}
    lines = []
    for case in ("plain", "sealed"):
        for which, title in (("first", "nothing is known of the object"), ("next", "the same object once more, elsewhere")):
            found = [one["cold"][which] for one in results[case]]
            lines.append([CASES[case][0], title, *(spread([one[what] for one in found], digits) for what, (_, digits) in columns.items())])
    return "## A cold read of 4 KiB, at most\n\n" + table(["", "", *(title for title, _ in columns.values())], lines)


def details_cpu(results, profiles):
    found = [one for one in profiles if one]
    by_itself = spread([100 * one["encode"]["cpu_seconds"] / one["write"]["cpu_seconds"] for one in results["plain"]])
    text = f"## Where the CPU of a write goes\n\n(4,2), objects of {OBJECT_MIB} MiB. Coding as many bytes and nothing else takes {by_itself} % of the CPU time of the write."
    if not found:
        return text + " No samples: perf is not there, or has no names."
    shares = {name: [one.get(name, 0) for one in found] for name in set().union(*found)}
    top = sorted(shares, key=lambda name: -statistics.median(shares[name]))[:TOP]
    return text + "\n\n" + table(["function", "% of samples"], [[f"`{name}`", spread(shares[name])] for name in top])


def details_nbd(vpools):
    columns = {"write": ("write MB/s", 0), "write_cpu": ("CPU ms per MiB", 2), "read": ("read MB/s", 0), "read_cpu": ("CPU ms per MiB", 2),
               "iops": ("writes and flushes per second", 0), "p50_us": ("p50 µs", 0), "p99_us": ("p99 µs", 0), "cpu_us": ("CPU µs of each", 1)}
    lines = [[title, *(spread([one.get(what) for one in vpools[vpool]], digits) for what, (_, digits) in columns.items())] for vpool, title in VPOOLS.items()]
    return "## Over NBD\n\n" + table(["", *(title for title, _ in columns.values())], lines)


def main():
    page = Page("coded", "Coded backends", __doc__, disk_gib=12, rounds=3, seconds=4)
    page.parser.add_argument("--mib", type=int, default=1024, help="of objects, and of a vDisk")
    options = page.options()
    assert PROGRAM.exists(), f"{PROGRAM} is not there: cargo build --release -p ovs-backend --example coded"
    results, profiles, vpools = {case: [] for case in CASES}, [], {vpool: [] for vpool in VPOOLS}
    with contextlib.ExitStack() as cleanups:
        alone = Alone(options.mib)
        cleanups.callback(alone.close)
        for number, case in alternate(options.rounds, [*CASES, "profile"]):
            if case == "profile":
                profiles.append(alone.profile())
                continue
            one = alone.measure(case, number)
            results[case].append(one)
            page.note(f"round {number + 1}/{options.rounds} {case:11} " + ", ".join(f"{step} {found['mb_s']:,.0f}" for step, found in one.items() if step != "cold") + " MB/s")
        ovs = Ovs(options.mib * MIB)
        cleanups.callback(ovs.close)
        for number, vpool in alternate(options.rounds, VPOOLS):
            one = ovs.flush(vpool, options.seconds) | (ovs.sequential(vpool) if vpool != "again" else {})
            vpools[vpool].append(one)
            page.note(f"round {number + 1}/{options.rounds} {vpool:11} a write and its flush p50 {one['p50_us']:,.0f} µs"
                      + (f"; write {one['write']:,.0f}, read {one['read']:,.0f} MB/s" if "write" in one else ""))
    page.write(f"{options.mib:,} MiB in objects of {OBJECT_MIB} MiB, and a vDisk of as many; all directories on one device. x: of what the row names.",
               judge(results, profiles, vpools), details(results), details_cold(results), details_cpu(results, profiles), details_nbd(vpools))


if __name__ == "__main__":
    main()

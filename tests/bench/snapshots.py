#!/usr/bin/python3
"""Snapshots and clones: how long they take, whatever the vDisk holds, and what a writer notices.

vDisks of 100 GiB that hold little, much, and much in small pieces. In each round, on a fresh ovsd and a fresh clone of each:
snapshots and clones one after the other with nobody writing, then snapshots while fio writes 4 KiB at random over what
the vDisk holds, 32 deep and one at a time. A clone counts until its first read is answered over NBD, and until its first write is.
A writer's writes count as around a snapshot when they end between its request and SETTLE after its answer.
Beside: the same with qcow2 images (`qemu-img snapshot` when nobody has the image open; an overlay and its qemu-nbd to the first read)
and `cp --reflink` on xfs. What the images hold is allocated and not written, each 4 KiB piece as a cluster of 64 KiB, and so are the
sequential files on xfs: their time goes with the number of clusters and extents.
"""

import contextlib
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from typing import NamedTuple

import load
from nbd_client import Connection
from report import Goal, Page, Rounds, alternate, goals, spread, table
from stack import BIN, GIB, MIB, Stack, loop_device, mounted, run, wait_until

DISK = 100 * GIB
TIMES = 15
CLONES, CLI_CLONES = 100, 10
SETTLE = 0.1
PAUSE = 0.4
DEPTHS = (32, 1)


class Content(NamedTuple):
    title: str
    size: int
    is_random: bool


def contents(large_gib):
    return {"little": Content("0.1 GiB, sequential", 100 * MIB, False), "much": Content(f"{large_gib} GiB, sequential", large_gib * GIB, False),
            "pieces": Content("512 MiB in 4 KiB pieces all over it", 512 * MIB, True)}


class Ovs:
    def __init__(self, contents):
        self.contents = contents
        self.stack = Stack(config="")
        self.stack.start()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ovs-bench-", dir="/var/tmp"))
        for name, content in contents.items():
            self.stack.ask("POST", "/v1/vdisks", {"vpool": "default", "name": name, "size_bytes": DISK})
            place = [load.nbd(self.stack.uri(name))]
            if content.is_random:
                load.fill(place, DISK, "--rw=randwrite", "--bs=4k", "--iodepth=32", f"--io_size={content.size}", "--randseed=7")
            else:
                load.fill(place, content.size)
        wait_until("all has left the write buffer", lambda: load.buffered(self.stack) == 0, 120)
        self.stack.ovsd.stop()

    @contextlib.contextmanager
    def fresh(self, name):
        """A clone of that content on a fresh ovsd, gone afterwards with all that was made of it."""
        self.stack.restart()
        self.vdisk, self.made = "work", []
        self.clone(name, "work")
        try:
            yield
        finally:
            wait_until("nobody is attached", lambda: load.metric(self.stack, "ovs_nbd_connections") == 0, 30)
            for clone in reversed(self.made):
                self.stack.ask("DELETE", f"/v1/vdisks/default:{clone}?purge=true")
            self.stack.ovsd.stop()

    def snapshot(self, name):
        begun = time.monotonic()
        self.stack.ask("POST", f"/v1/vdisks/default:{self.vdisk}/snapshots", {"name": name})
        return time.monotonic() - begun

    def clone(self, source, name, snapshot=None):
        source = {"vdisk": f"default:{source}", **({"snapshot": snapshot} if snapshot else {})}
        self.stack.ask("POST", "/v1/vdisks", {"vpool": "default", "name": name, "source": source})
        self.made.append(name)

    def first_io(self, name):
        """Clones; how long until it read, and until it wrote."""
        begun = time.monotonic()
        self.clone(self.vdisk, name)
        with Connection(self.stack.nbd_socket, f"default/{name}") as connection:
            connection.read(0, 4096)
            has_read = time.monotonic() - begun
            connection.write(0, bytes(4096))
            return has_read, time.monotonic() - begun

    def hundred(self):
        """CLONES of one snapshot, one after the other; then a few more by `ovs`: seconds of the first, seconds of one of the others."""
        self.snapshot("base")
        begun = time.monotonic()
        for number in range(CLONES):
            self.clone(self.vdisk, f"clone-{number}", "base")
        took, begun = time.monotonic() - begun, time.monotonic()
        for number in range(CLI_CLONES):
            run(BIN / "ovs", "--root", self.stack.root, "vdisk", "clone", f"default/{self.vdisk}@base", f"default/cli-{number}", "--output", "json")
            self.made.append(f"cli-{number}")
        return took, (time.monotonic() - begun) / CLI_CLONES

    def under_load(self, content, depth, seconds):
        """Snapshots while fio writes: how long each took; latencies of writes around them, and of the others, in µs."""
        log = self.folder / f"latency-{depth}"
        size = ["--size=100G"] if content.is_random else [f"--size={content.size}"]
        fio = subprocess.Popen(["fio", "--name=writer", *load.nbd(self.stack.uri(self.vdisk)), "--thread", "--rw=randwrite", "--bs=4k", f"--iodepth={depth}",
                                "--norandommap", "--randseed=3", *size, "--time_based", f"--runtime={seconds}", f"--write_lat_log={log}", "--log_unix_epoch=1"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            time.sleep(1)
            took, windows, end = [], [], time.monotonic() + seconds - 1.5
            while time.monotonic() < end:
                begun = time.time()
                took.append(self.snapshot(f"live-{depth}-{len(took)}"))
                windows.append((begun, time.time() + SETTLE))
                time.sleep(PAUSE)
            assert fio.wait(60) == 0
        finally:
            fio.kill()
            fio.wait()
        around, others = split(log.parent / f"{log.name}_clat.1.log", windows)
        return took, around, others

    def close(self):
        self.stack.close(expect_clean=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def split(log, windows):
    """The latencies in fio's log, in µs: of what ended within the windows, and of the rest; the first half second, which opens the vDisk, left out."""
    around, others, first = Counter(), Counter(), None
    windows = [(int(begin * 1000), int(end * 1000) + 1) for begin, end in windows]
    with open(log) as lines:
        for line in lines:
            at, latency = map(int, line.split(",", 2)[:2])
            first = first or at
            if at > first + 500:
                (around if any(begin <= at <= end for begin, end in windows) else others)[latency / 1000] += 1
    return around, others


class Qcow2:
    def __init__(self, contents):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ovs-bench-", dir="/var/tmp"))
        for name, content in contents.items():
            clusters_bytes = content.size // 4096 * 65536 if content.is_random else content.size
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", self.image(name), clusters_bytes)
            run("qemu-img", "resize", "-q", self.image(name), DISK)

    def image(self, name):
        return self.folder / f"{name}.qcow2"

    @contextlib.contextmanager
    def served(self, image, *options):
        socket = self.folder / "qemu.sock"
        socket.unlink(missing_ok=True)
        process = subprocess.Popen(["qemu-nbd", "-f", "qcow2", "-k", socket, "-t", *options, image], stdin=subprocess.DEVNULL)
        try:
            wait_until("qemu-nbd listens", socket.exists, 20, every_s=0.001)
            yield socket
        finally:
            process.terminate()
            process.wait(30)

    def snapshot(self, name):
        begun = time.monotonic()
        run("qemu-img", "snapshot", "-c", "s", self.image(name))
        took = time.monotonic() - begun
        run("qemu-img", "snapshot", "-d", "s", self.image(name))
        return took

    def first_io(self, name):
        overlay = self.folder / "overlay.qcow2"
        overlay.unlink(missing_ok=True)
        begun = time.monotonic()
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", self.image(name), "-F", "qcow2", overlay)
        with self.served(overlay, "--cache=none") as socket, Connection(socket) as connection:
            connection.read(0, 4096)
            return time.monotonic() - begun

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class Reflink:
    def __init__(self, contents):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ovs-bench-", dir="/var/tmp"))
        self.cleanups = contextlib.ExitStack()
        self.cleanups.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            disk = self.folder / "xfs.img"
            with open(disk, "wb") as file:
                file.truncate(2 * DISK)
            run("mkfs.xfs", "-q", "-m", "reflink=1", disk)
            self.mount = self.cleanups.enter_context(mounted(self.cleanups.enter_context(loop_device(disk)), self.folder / "mnt"))
            for name, content in contents.items():
                path = self.mount / name
                if content.is_random:
                    load.fill([["--ioengine=psync", f"--filename={path}"]], DISK, "--rw=randwrite", "--bs=4k", f"--io_size={content.size}", "--randseed=7")
                else:
                    run("fallocate", "-l", content.size, path)
            run("sync", "-f", self.mount)
        except BaseException:
            self.cleanups.close()
            raise

    def snapshot(self, name):
        copy = self.mount / "copy"
        begun = time.monotonic()
        run("cp", "--reflink=always", self.mount / name, copy, timeout=120)
        took = time.monotonic() - begun
        copy.unlink()
        return took

    def close(self):
        self.cleanups.close()


def measure(ovs, name, content, seconds, with_hundred):
    with ovs.fresh(name):
        one = {"snapshot": statistics.median(ovs.snapshot(f"idle-{number}") for number in range(TIMES))}
        reads, writes = zip(*(ovs.first_io(f"first-{number}") for number in range(TIMES)))
        one |= {"read": statistics.median(reads), "write": statistics.median(writes)}
        if with_hundred:
            one["clones"], one["cli"] = ovs.hundred()
        for depth in DEPTHS:
            took, around, others = ovs.under_load(content, depth, seconds)
            one |= {f"snapshot-{depth}": statistics.median(took), f"slowest-{depth}": max(took), f"count-{depth}": len(took),
                    f"stall-{depth}": load.percentile(around, 0.99) / 1000, f"worst-{depth}": max(around) / 1000,
                    f"other-{depth}": load.percentile(others, 0.99) / 1000, f"other-worst-{depth}": max(others) / 1000}
        return one


def ms(values):
    return [value * 1000 for value in values]


def alike(results, what):
    """The slowest content's time over the fastest's: in each round, and of their medians."""
    times = [[one[what] for one in runs] for runs in results.values()]
    medians = [statistics.median(values) for values in times]
    return Rounds([max(values) / min(values) for values in zip(*times)], max(medians) / min(medians))


def judge(results, contents):
    kinds = {"snapshot": "snapshot, nobody writes", "snapshot-32": "snapshot under a writer, 32 deep", "snapshot-1": "snapshot under a writer, one at a time",
             "read": "clone to its first read"}
    rows = []
    for what, title in kinds.items():
        rows += [Goal(f"{title}: {content.title}", ms(one[what] for one in results[name]), "ms", 50, 10) for name, content in contents.items()]
        rows.append(Goal(f"{title}: slowest of the three contents over fastest", alike(results, what), "x", 2, 2))
    for depth in DEPTHS:
        rows += [Goal(f"writes around a snapshot, {depth} deep, p99: {content.title}", [one[f"stall-{depth}"] for one in results[name]], "ms", None, 10)
                 for name, content in contents.items()]
    rows.append(Goal(f"{CLONES} clones of one snapshot: {contents['much'].title}", [one["clones"] for one in results["much"]], "s", 2, 2, digits=2))
    return goals(rows)


def details(results, contents):
    heads = ["", *(content.title for content in contents.values())]
    lines = [["clone to its first write, ms", *(spread(ms(one["write"] for one in results[name])) for name in contents)]]
    for depth in DEPTHS:
        named = {f"slowest-{depth}": ("slowest snapshot, ms", 1000), f"other-{depth}": ("p99 of writes not around one, ms", 1),
                 f"worst-{depth}": ("slowest write around one, ms", 1), f"other-worst-{depth}": ("slowest write not around one, ms", 1),
                 f"count-{depth}": ("snapshots in a run", 1)}
        lines += [[f"{depth} deep: {title}", *(spread([one[what] * scale for one in results[name]]) for name in contents)]
                  for what, (title, scale) in named.items()]
    lines.append(["one clone by `ovs vdisk clone`, ms", "", spread(ms(one["cli"] for one in results["much"])), ""])
    return table(heads, lines)


def beside(peers, contents):
    heads = ["ms", *(content.title for content in contents.values())]
    return table(heads, [[title, *(spread(ms(values[name])) for name in contents)] for title, values in peers.items()])


def main():
    page = Page("snapshots", "Snapshots and clones", __doc__, disk_gib=16, rounds=3, seconds=5)
    page.parser.add_argument("--large-gib", type=int, default=8, help="how much the second vDisk holds")
    page.parser.add_argument("--no-peers", action="store_true")
    options = page.options()
    chosen = contents(options.large_gib)
    results = {name: [] for name in chosen}
    titles = {"`qemu-img snapshot -c`, image not open": "snapshot", "overlay and `qemu-nbd` to its first read": "first_io"}
    peers = {title: {name: [] for name in chosen} for title in [*titles, "`cp --reflink` on xfs"]}
    with contextlib.ExitStack() as cleanups:
        ovs = Ovs(chosen)
        cleanups.callback(ovs.close)
        if not options.no_peers:
            qcow2, reflink = Qcow2(chosen), Reflink(chosen)
            cleanups.callback(qcow2.close)
            cleanups.callback(reflink.close)
        for number, name in alternate(options.rounds, chosen):
            one = measure(ovs, name, chosen[name], options.seconds, name == "much")
            results[name].append(one)
            if not options.no_peers:
                for title, what in titles.items():
                    peers[title][name].append(getattr(qcow2, what)(name))
                peers["`cp --reflink` on xfs"][name].append(reflink.snapshot(name))
            page.note(f"round {number + 1}/{options.rounds} {name:7} snapshot {one['snapshot'] * 1000:.1f} ms, under load {one['snapshot-32'] * 1000:.1f}, "
                      f"{one['snapshot-1'] * 1000:.1f}; clone to first read {one['read'] * 1000:.1f}; p99 around {one['stall-32']:.1f}, {one['stall-1']:.1f} "
                      f"(else {one['other-32']:.1f}, {one['other-1']:.1f})")
    page.write(f"Times are medians of {TIMES} in a round, under a writer of as many as fit into {options.seconds} s.", judge(results, chosen),
               details(results, chosen), *([] if options.no_peers else ["## Beside", beside(peers, chosen)]))


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""The same vDisk over NBD, as a file of ovsd-edge, and as a loop device on that file: operations per second, and whose CPU time they take.

A thin vDisk made for the run for writes, one of 1 GiB that was written before for reads; fresh programs for each run, the write
buffer as it comes (1 GiB). File and loop device: io_uring, O_DIRECT; the loop device with direct I/O to the file. CPU time per operation is that of ovsd,
of ovsd-edge, of fio (which includes what the kernel does on its behalf), and of all else on the machine: the loop device's
and FUSE's workers in the kernel, if nothing else runs.
"""

import contextlib

import load
from bench import ROWS as ALL_ROWS
from report import Goal, Page, alternate, goals, ratios, spread, table
from stack import GIB, Stack, loop_device, wait_until

DISK = GIB
ROWS = {name: ALL_ROWS[name] for name in ("write-4k-qd32", "read-4k-qd32", "write-4k-flush", "read-4k-qd1", "write-1m", "read-1m")}
WAYS = {"nbd": "NBD", "file": "file of ovsd-edge", "loop": "loop device on that file"}
# Of NBD's operations per second: must, aim.
LIMITS = {"file": (0.4, 0.6), "loop": (0.2, 0.3)}
HOPS = ("ovsd", "ovsd-edge", "fio", "all else")


class Edge:
    def __init__(self):
        self.stack = Stack(config="")
        self.stack.start()
        self.make("filled")
        load.fill([load.nbd(self.stack.uri("filled"))], DISK, warm=True)
        self.stack.ovsd.stop()

    def make(self, name):
        self.stack.ask("POST", "/v1/vdisks", {"vpool": "default", "name": name, "size_bytes": DISK})

    @contextlib.contextmanager
    def serve(self, way, reads):
        """Where fio goes, and the programs that take part."""
        stack = self.stack
        stack.restart()
        name = "filled" if reads else "thin"
        with contextlib.ExitStack() as ends:
            ends.callback(stack.ovsd.stop)
            if not reads:
                self.make(name)
                ends.callback(self.remove, name)
            pids = {"ovsd": stack.ovsd.pid}
            if way == "nbd":
                yield load.nbd(stack.uri(name)), pids
                return
            stack.start_edge()
            ends.callback(stack.edge.stop)
            wait_until("the file is there", stack.file(name).exists, 20)
            path = stack.file(name) if way == "file" else ends.enter_context(loop_device(stack.file(name)))
            yield ["--ioengine=io_uring", "--direct=1", f"--filename={path}"], pids | {"ovsd-edge": stack.edge.pid}

    def remove(self, name):
        wait_until("nobody is attached", lambda: self.stack.show(name)["attachment_count"] == 0, 30)
        self.stack.ask("DELETE", f"/v1/vdisks/default:{name}?purge=true")

    def close(self):
        self.stack.close(expect_clean=False)


def judge(results):
    rows = []
    for row, (title, _) in ROWS.items():
        for way, (must, aim) in LIMITS.items():
            share = ratios([one.total for one in results[row, way]], [one.total for one in results[row, "nbd"]])
            rows.append(Goal(f"{title}: {WAYS[way]}, of NBD's", share, "x", must, aim, more_is_better=True, digits=2))
    return goals(rows)


def details(results, row):
    is_large = row.endswith("1m")
    heads = ["", "MB/s" if is_large else "IOPS", "p50 µs", "p99 µs", *(f"{hop}, CPU µs per op" for hop in HOPS)]
    lines = []
    for way, title in WAYS.items():
        runs = results[row, way]
        lines.append([title, spread([one.mb_s if is_large else one.total for one in runs], 0), spread([one.percentile(0.5) for one in runs], 0),
                      spread([one.percentile(0.99) for one in runs], 0), *(spread([one.cpu_us.get(hop) for one in runs]) for hop in HOPS)])
    return f"## {ROWS[row][0]}\n\n" + table(heads, lines)


def main():
    page = Page("edge", "Files and loop devices beside NBD", __doc__, disk_gib=5, rounds=3, seconds=3)
    options = page.options()
    results = {(row, way): [] for row in ROWS for way in WAYS}
    edge = Edge()
    try:
        for row in ROWS:
            for number, way in alternate(options.rounds, WAYS):
                with edge.serve(way, row.startswith("read")) as (place, pids):
                    one = load.fio([place], ROWS[row][1], DISK, options.seconds, pids)
                results[row, way].append(one)
                cpu = ", ".join(f"{hop} {used:.1f}" for hop, used in one.cpu_us.items())
                page.note(f"round {number + 1}/{options.rounds} {row:14} {way:4} {one.total:9,.0f} IOPS, µs per op: {cpu}")
    finally:
        edge.close()
    page.write(f"{options.seconds} s a run. p50 and p99 are of the operations, without the flushes.", judge(results),
               *(details(results, row) for row in ROWS))


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""1,000 vDisks on one ovsd, 100 of them busy: what they reach together, how evenly, and what the thousand cost.

In each round, on a fresh root: 1,000 vDisks are made, one request after the other; ovsd is stopped and started, until all are open and each answers a
read over NBD; then 4 KiB random writes and reads, 8 deep, to 100 of them, each of 64 MiB, spread over the thousand; memory after that.
The same load on an ovsd that has the 100 vDisks alone is beside it. Defaults everywhere.
"""

import contextlib
import time

import load
from nbd_client import Connection
from report import Goal, Page, alternate, goals, ratios, spread, table
from stack import MIB, Stack, wait_until

DEPTH, SIZE = 8, 64 * MIB
LOADS = {"writes": ["--rw=randwrite", "--bs=4k", f"--iodepth={DEPTH}", "--end_fsync=1"], "reads": ["--rw=randread", "--bs=4k", f"--iodepth={DEPTH}"]}


def read_each(stack, count):
    for number in range(count):
        with Connection(stack.nbd_socket, f"default/v{number}") as connection:
            connection.read(0, 4096)


def run_with(count, busy, seconds):
    """Figures of one round with that many vDisks."""
    stack = Stack(config="")
    with contextlib.ExitStack() as ends:
        ends.callback(stack.close, False)
        stack.start()
        begun = time.monotonic()
        for number in range(count):
            stack.ask("POST", "/v1/vdisks", {"vpool": "default", "name": f"v{number}", "size_bytes": SIZE})
        found = {"create": time.monotonic() - begun}
        begun = time.monotonic()
        stack.ovsd.stop()
        found["stop"] = time.monotonic() - begun
        begun = time.monotonic()
        stack.restart()
        found["answers"] = time.monotonic() - begun
        read_each(stack, count)
        found["serves"] = time.monotonic() - begun
        wait_until("all are open", lambda: load.metric(stack, "ovs_vdisks_open") >= count, 120)
        places = [load.nbd(stack.uri(f"v{number}")) for number in range(0, count, count // busy)][:busy]
        load.fill(places, SIZE, "--iodepth=1", "--bs=256k")
        for name, options in LOADS.items():
            found[name] = load.fio(places, options, SIZE, seconds, {"ovsd": stack.ovsd.pid})
        found["memory"] = stack.ovsd.status("VmRSS") / MIB
        return found


def judge(runs, alone, options):
    busy = options.busy
    rows = []
    for name in LOADS:
        rows += [Goal(f"{name}: IOPS of the {busy} together", [one[name].total for one in runs], "", digits=0),
                 Goal(f"{name}: the same, of what they reach alone", ratios([one[name].total for one in runs], [one[name].total for one in alone]), "x", digits=2),
                 Goal(f"{name}: least served of the {busy}, of an even share", [min(one[name].iops) * busy / one[name].total for one in runs], "x", digits=2),
                 Goal(f"{name}: best served of the {busy}, of an even share", [max(one[name].iops) * busy / one[name].total for one in runs], "x", digits=2),
                 Goal(f"{name}: p99", [one[name].percentile(0.99) / 1000 for one in runs], "ms")]
    rows += [Goal(title, [one[what] for one in runs], unit, digits=2) for what, title, unit in (
        ("create", f"{options.vdisks:,} vDisks made", "s"), ("stop", "stop", "s"), ("answers", "start, until the RPC answers", "s"),
        ("serves", "start, until each has answered a read", "s"), ("memory", "memory of ovsd after all that", "MiB"))]
    return goals(rows)


def details(runs, options):
    cells = []
    for title, ones in ((f"{options.busy} of {options.vdisks:,}", runs[options.vdisks]), (f"{options.busy} alone", runs[options.busy])):
        cells.append([title, *(spread([one[name].total for one in ones], 0) for name in LOADS),
                      *(spread([one[name].cpu_us["ovsd"] for one in ones]) for name in LOADS), spread([one["memory"] for one in ones], 0)])
    return table(["", "write IOPS", "read IOPS", "ovsd CPU µs per write", "per read", "memory MiB"], cells)


def main():
    page = Page("thousand", "1,000 vDisks on one ovsd", __doc__, disk_gib=12, rounds=3, seconds=5)
    page.parser.add_argument("--vdisks", type=int, default=1000)
    page.parser.add_argument("--busy", type=int, default=100)
    options = page.options()
    runs = {options.vdisks: [], options.busy: []}
    for number, count in alternate(options.rounds, runs):
        one = run_with(count, options.busy, options.seconds)
        runs[count].append(one)
        page.note(f"round {number + 1}/{options.rounds} {count} vDisks: made in {one['create']:.1f} s, restarted in {one['serves']:.1f} s, "
                  f"{one['writes'].total:,.0f} write and {one['reads'].total:,.0f} read IOPS, {one['memory']:.0f} MiB")
    page.write(f"{options.busy} vDisks busy, {DEPTH} deep each, {options.seconds} s a run.", judge(runs[options.vdisks], runs[options.busy], options),
               details(runs, options))


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""Steady uniform overwrites with scrub: what the disk takes per client byte, and what is stored per byte that is needed.

One vDisk is filled, eight times as large as the write buffer, and then overwritten at random, 4 KiB at a time, 32 deep (--rate: so many per second
and no more); only the second half of the overwrites counts, when scrub, which runs by itself meanwhile, has found its pace. A fresh vDisk each round.
"""

import json
import subprocess
import time

from bench import cpu_seconds, written_bytes  # which finds the integration tests' modules
from report import Goal, Page, goals, spread, table
from stack import MIB, Stack, wait_until


def fio(stack, name, *options):
    command = ["fio", f"--name={name}", "--ioengine=nbd", f"--uri={stack.uri('v')}", "--thread", "--output-format=json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True, timeout=3600)
    # fio has notes before its answer.
    return json.loads(done.stdout[done.stdout.index(b"{"):])["jobs"][0]["write"]


def measure(options):
    size = options.size_mib * MIB
    buffer_mib = options.size_mib // 8
    stack = Stack(config=f"buffer:\n  size: {buffer_mib}MiB\n  segment_size: {max(4, buffer_mib // 16)}MiB\nscrub:\n  every: 1s\n  min_size: 16MiB\n")
    try:
        stack.start()
        stack.create("v", f"{options.size_mib}MiB")
        fio(stack, "fill", "--rw=write", "--bs=1M", "--iodepth=4", f"--size={size}")
        overwrite = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--norandommap", f"--size={size}",
                     f"--io_size={int(size * options.times / 2)}"] + ([f"--rate_iops={options.rate}"] if options.rate else [])
        fio(stack, "warm-up", "--randseed=1", *overwrite)
        pid = stack.ovsd.pid
        before, cpu, begun = written_bytes(pid), cpu_seconds(pid), time.monotonic()
        written = fio(stack, "overwrite", "--randseed=2", *overwrite)
        wait_until("all has left the write buffer", lambda: stack.show("v")["buffered_bytes"] == 0, 120)
        client = written["io_bytes"]
        found = {"iops": written["iops"], "p99_ms": written["clat_ns"]["percentile"]["99.000000"] / 1e6, "took": time.monotonic() - begun,
                 "cpu_us": (cpu_seconds(pid) - cpu) / (client / 4096) * 1e6, "disk": (written_bytes(pid) - before) / client}
        stats = stack.ovs("vdisk", "stats", "default/v")
        found |= {"stored": stats["stored_bytes"] / size, "moved": stats["scrub_moved_bytes"] / MIB, "freed": stats["scrub_freed_bytes"] / MIB}
        result = stack.ovs("vdisk", "scrub", "default/v", timeout=600)["result"]
        return found | {"scrubbed": result["stored_bytes"] / result["needed_bytes"]}
    finally:
        stack.close(expect_clean=False)


def judge(rounds):
    of = lambda what: [one[what] for one in rounds]  # noqa: E731
    return goals([Goal("disk bytes per client byte, scrub included", of("disk"), "", 3.8, 3.4, digits=2),
                  Goal("stored bytes per live byte, at the end", of("stored"), "", 2, 1.4, digits=2),
                  Goal("the same after `ovs vdisk scrub`", of("scrubbed"), "", 2, 1.4, digits=2)])


def details(rounds):
    heads = {"iops": ("IOPS", 0), "p99_ms": ("p99 ms", 1), "cpu_us": ("server CPU µs per write", 1), "moved": ("scrub moved in all, MiB", 0),
             "freed": ("and freed, MiB", 0)}
    return table([title for title, _ in heads.values()], [[spread([one[what] for one in rounds], digits) for what, (_, digits) in heads.items()]])


def main():
    page = Page("overwrite", "Steady overwrites with scrub", __doc__, disk_gib=6, rounds=3)
    page.parser.add_argument("--size-mib", type=int, default=1024)
    page.parser.add_argument("--times", type=float, default=4, help="overwrites of the whole vDisk")
    page.parser.add_argument("--rate", type=int, default=0, help="IOPS; without it as fast as it goes")
    options = page.options()
    rounds = []
    for number in range(options.rounds):
        rounds.append(measure(options))
        one = rounds[-1]
        page.note(f"round {number + 1}/{options.rounds} {one['iops']:9,.0f} IOPS, {one['disk']:.2f} disk bytes per client byte, stored {one['stored']:.2f}, "
                  f"{one['scrubbed']:.2f} after a scrub; {one['took']:.0f} s")
    page.write(f"{options.size_mib:,} MiB, a write buffer of {options.size_mib // 8}, {options.times:g} times overwritten.", judge(rounds), details(rounds))


if __name__ == "__main__":
    main()

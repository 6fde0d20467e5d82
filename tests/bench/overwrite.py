#!/usr/bin/python3
"""Steady uniform overwrites with scrub: what the disk takes per client byte, and what is stored per byte that is needed.

One vDisk is filled and then overwritten at random, 4 KiB at a time, 32 deep, eight times as large as the write buffer; only
the second half of the overwrites counts, when scrub has found its pace. Options: --size-mib, --times (overwrites of the
whole vDisk), --rate (IOPS; without it as fast as it goes). Needs fio and `make build`.
"""

import argparse
import json
import subprocess
import time

from bench import cpu_seconds, written_bytes  # which finds the integration tests' modules
from stack import MIB, Stack, wait_until


def fio(stack, name, *options):
    command = ["fio", f"--name={name}", "--ioengine=nbd", f"--uri={stack.uri('v')}", "--thread", "--output-format=json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True, timeout=3600)
    # fio has notes before its answer.
    return json.loads(done.stdout[done.stdout.index(b"{"):])["jobs"][0]["write"]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--size-mib", type=int, default=1024)
    arguments.add_argument("--times", type=float, default=4)
    arguments.add_argument("--rate", type=int, default=0)
    options = arguments.parse_args()
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
        took, client = time.monotonic() - begun, written["io_bytes"]
        stats = stack.ovs("vdisk", "stats", "default/v")
        print(f"{options.size_mib} MiB, buffer {buffer_mib} MiB, {client / MIB:.0f} MiB overwritten in {took:.0f} s: "
              f"{written['iops']:.0f} IOPS, p99 {written['clat_ns']['percentile']['99.000000'] / 1e6:.1f} ms, "
              f"{(cpu_seconds(pid) - cpu) / (client / 4096) * 1e6:.1f} µs CPU per write")
        print(f"disk bytes per client byte: {(written_bytes(pid) - before) / client:.2f}")
        print(f"stored over live at the end: {stats['stored_bytes'] / size:.2f}; scrub moved {stats['scrub_moved_bytes'] / MIB:.0f} MiB "
              f"and freed {stats['scrub_freed_bytes'] / MIB:.0f} MiB in all")
        result = stack.ovs("vdisk", "scrub", "default/v", timeout=600)["result"]
        print(f"after a scrub that was asked for: {result['stored_bytes'] / result['needed_bytes']:.2f} stored per live byte")
    finally:
        stack.close()


if __name__ == "__main__":
    main()

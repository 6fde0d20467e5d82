#!/usr/bin/python3
"""Random reads through a map that is larger than the memory for it, beside the same map in memory.

A vDisk of --clusters (2^28: 1 TiB), each at a random place of a few SCOs, so that nothing lies together: the worst map there is.
4 KiB random reads over all of it, 32 deep; with `memory.maps` of --budget-mib, and with room for all. A
fresh ovsd each time, warmed up by a read of each page.
"""

import contextlib
import json
import subprocess

from bench import cpu_seconds  # which finds the integration tests' modules
from load import metric
from report import Goal, Page, alternate, goals, ratios, spread, table
from stack import BIN, MIB, Stack, run


def configuration(maps_mib):
    return f"buffer:\n  size: 256MiB\n  segment_size: 16MiB\nmemory:\n  maps: {maps_mib}MiB\n"


def fio(stack, size, *options):
    command = ["fio", "--name=read", "--ioengine=nbd", f"--uri={stack.uri('v')}", "--thread", "--output-format=json",
               "--bs=4k", "--iodepth=32", "--norandommap", "--randrepeat=0", f"--size={size}", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True, timeout=3600)
    return json.loads(done.stdout[done.stdout.index(b"{"):])["jobs"][0]["read"]


def measure(stack, size, maps_mib, seconds):
    stack.configure(configuration(maps_mib))
    stack.start()
    try:
        # One cluster of each leaf.
        fio(stack, size, "--rw=read:2044k", f"--io_size={size // 512}")
        pid, loads = stack.ovsd.pid, metric(stack, "ovs_map_page_loads_total")
        before = cpu_seconds(pid)
        read = fio(stack, size, "--rw=randread", "--time_based", f"--runtime={seconds}")
        count = read["total_ios"]
        return {"iops": read["iops"], "cpu_us": (cpu_seconds(pid) - before) / count * 1e6,
                "loads": (metric(stack, "ovs_map_page_loads_total") - loads) / count,
                "map_mib": metric(stack, "ovs_map_resident_bytes") / MIB, "rss_mib": stack.ovsd.status("VmRSS") / MIB}
    finally:
        stack.ovsd.stop()


def judge(results):
    share = ratios(*([one["iops"] for one in rounds] for rounds in results.values()))
    return goals([Goal("IOPS with so much memory for maps, of those with room for all", share, "x", 0.5, 0.7, more_is_better=True, digits=2)])


def details(results):
    heads = {"iops": ("IOPS", 0), "cpu_us": ("ovsd, CPU µs per read", 1), "loads": ("pages loaded per read", 2), "map_mib": ("maps, MiB", 0),
             "rss_mib": ("ovsd, MiB", 0)}
    return table(["", *(title for title, _ in heads.values())],
                 [[name, *(spread([one[what] for one in rounds], digits) for what, (_, digits) in heads.items())] for name, rounds in results.items()])


def main():
    page = Page("maps", "Maps larger than their memory", __doc__, disk_gib=5, rounds=3, seconds=5)
    page.parser.add_argument("--clusters", type=int, default=1 << 28)
    page.parser.add_argument("--budget-mib", type=int, default=256)
    options = page.options()
    size = options.clusters * 4096
    with contextlib.ExitStack() as cleanups:
        stack = Stack(config=configuration(options.budget_mib))
        cleanups.callback(stack.close, False)
        stack.start()
        stack.create("v", f"{size // MIB}MiB")
        # 16 SCOs of 4 MiB.
        run("fio", "--name=fill", "--ioengine=nbd", f"--uri={stack.uri('v')}", "--thread", "--rw=write", "--bs=1M", "--size=64M", timeout=120)
        vdisk = stack.show("v")["uuid"]
        stack.ovsd.stop()
        page.note(run(BIN / "examples" / "large_map", stack.state / "registry", vdisk, options.clusters, "random", timeout=3600).stdout.strip())
        rooms = {f"{options.budget_mib} MiB": options.budget_mib, "room for all": 1 << 14}
        results = {name: [] for name in rooms}
        for number, name in alternate(options.rounds, rooms):
            one = measure(stack, size, rooms[name], options.seconds)
            results[name].append(one)
            page.note(f"round {number + 1}/{options.rounds} {name:12} {one['iops']:9,.0f} IOPS, {one['loads']:.2f} pages loaded per read")
    page.write(f"{options.clusters:,} places, {options.seconds} s a run.", judge(results), details(results))


if __name__ == "__main__":
    main()

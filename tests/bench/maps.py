#!/usr/bin/python3
"""Random reads through a map that is larger than the memory for it, beside the same map in memory.

A vDisk of --clusters (2^28: 1 TiB), each at a random place of a few SCOs, so that nothing lies together: the worst map there is.
4 KiB random reads over all of it, 32 deep; with `memory.maps` of --budget-mib, and with room for all. In alternation, a
fresh ovsd each time, warmed up by a read of each page. Prints IOPS, CPU per read, pages loaded per read and the memory of ovsd.
Needs fio, `make build`, and 3 GiB of disk for 2^28.
"""

import argparse
import json
import statistics
import subprocess

from bench import cpu_seconds  # which finds the integration tests' modules
from load import metric
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


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--clusters", type=int, default=1 << 28)
    arguments.add_argument("--budget-mib", type=int, default=256)
    arguments.add_argument("--seconds", type=int, default=5)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    size = options.clusters * 4096
    stack = Stack(config=configuration(options.budget_mib))
    try:
        stack.start()
        stack.create("v", f"{size // MIB}MiB")
        # 16 SCOs of 4 MiB.
        run("fio", "--name=fill", "--ioengine=nbd", f"--uri={stack.uri('v')}", "--thread", "--rw=write", "--bs=1M", "--size=64M", timeout=120)
        vdisk = stack.show("v")["uuid"]
        stack.ovsd.stop()
        print(run(BIN / "examples" / "large_map", stack.state / "registry", vdisk, options.clusters, "random", timeout=3600).stdout.strip())
        rooms = {f"{options.budget_mib} MiB": options.budget_mib, "room for all": 1 << 14}
        results = {name: [] for name in rooms}
        for number in range(options.rounds):
            for name, maps_mib in (rooms.items() if number % 2 == 0 else reversed(rooms.items())):
                results[name].append(measure(stack, size, maps_mib, options.seconds))
        for name, rounds in results.items():
            value = {key: statistics.median(result[key] for result in rounds) for key in rounds[0]}
            print(f"{name}: {value['iops']:.0f} IOPS [{min(r['iops'] for r in rounds):.0f}-{max(r['iops'] for r in rounds):.0f}], "
                  f"{value['cpu_us']:.1f} µs CPU and {value['loads']:.2f} pages loaded per read; maps {value['map_mib']:.0f} MiB, ovsd {value['rss_mib']:.0f} MiB")
        ratios = [small["iops"] / large["iops"] for small, large in zip(*results.values())]
        print(f"ratio: {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]")
    finally:
        stack.close()


if __name__ == "__main__":
    main()

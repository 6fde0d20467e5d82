#!/usr/bin/python3
"""What an idle vDisk takes of ovsd's memory, and what the map of a large one takes.

Resident memory (VmRSS) of an ovsd that has started with 1,000 vDisks less that of one that has started with none, by the vDisk:
all of them open and nobody attached; with an idle NBD connection to each; and after a flushed write to each. Then a vDisk of 1 TiB
that is mapped in large extents (tests/bench/large.py says how there can be one here), its whole map in memory after a read in each
2 MiB of it, less an empty vDisk of that size. `memory.maps` has room for all.
"""

import contextlib
import time

import large
import load
from nbd_client import Connection
from report import Goal, Page, goals, spread, table
from stack import MIB, Stack, wait_until

CONFIGURATION = "buffer:\n  size: 256MiB\n  segment_size: 16MiB\nmemory:\n  maps: 8GiB\nscrub:\n  automatic: false\n"
SETTLE = 2
LEAF = 2 * MIB


@contextlib.contextmanager
def started(stack, count):
    """ovsd anew with that many vDisks, all of them open."""
    stack.restart()
    try:
        wait_until("all vDisks are open", lambda: load.metric(stack, "ovs_vdisks_open") >= count, 120)
        time.sleep(SETTLE)
        yield
    finally:
        stack.ovsd.stop()


def resident(stack):
    return stack.ovsd.status("VmRSS")


def idle(none, many, count):
    """MiB by the vDisk: open, attached, and after a write."""
    with started(none, 0):
        base = resident(none)
    of_one = lambda: (resident(many) - base) / count / MIB  # noqa: E731
    with started(many, count), contextlib.ExitStack() as connections:
        found = {"open": of_one()}
        all_ = [connections.enter_context(Connection(many.nbd_socket, f"default/v{number}")) for number in range(count)]
        time.sleep(SETTLE)
        found["attached"] = of_one()
        for connection in all_:
            connection.write(0, bytes(4096))
            connection.flush()
        wait_until("all has left the write buffer", lambda: load.buffered(many) == 0, 120, every_s=0.5)
        time.sleep(SETTLE)
        found["written"] = of_one()
        return found


def mapped(stack, empty, clusters):
    """MiB of the map of all of it, as the memory of ovsd and as it counts itself; seconds of the reads."""
    with started(empty, 1):
        base = resident(empty)
    with started(stack, 1):
        opened = resident(stack) - base
        begun = time.monotonic()
        load.fio([load.nbd(stack.uri(large.NAME))], [f"--rw=read:{LEAF - 4096}", "--bs=4k", "--iodepth=32", f"--io_size={clusters * 4096 // LEAF * 4096}"],
                 clusters * 4096)
        took = time.monotonic() - begun
        time.sleep(SETTLE)
        return {"resident": (resident(stack) - base) / MIB, "opened": opened / MIB, "counted": load.metric(stack, "ovs_map_resident_bytes") / MIB,
                "loads": load.metric(stack, "ovs_map_page_loads_total"), "took": took}


def judge(idles, maps, options):
    size = large.title(options.clusters)
    title = {"open": "idle vDisk, open", "attached": "idle vDisk, open, an NBD connection to it", "written": "the same after a write and a flush"}
    rows = [Goal(f"{title[what]} (of {options.vdisks:,})", [one[what] for one in idles], "MiB", 3, 1, digits=3) for what in title]
    share = options.clusters / large.CLUSTERS
    rows.append(Goal(f"map of {size} in large extents, all of it in memory", [one["resident"] for one in maps], "MiB", 128 * share, 64 * share))
    return goals(rows)


def details(maps):
    named = {"counted": "`ovs_map_resident_bytes`, MiB", "opened": "memory when it is open and nothing was read, MiB", "loads": "map pages loaded",
             "took": "seconds that the reads took"}
    return table(["map of the large vDisk", ""], [[title, spread([one[what] for one in maps])] for what, title in named.items()])


def main():
    page = Page("memory", "Memory", __doc__, disk_gib=6, rounds=3)
    page.parser.add_argument("--vdisks", type=int, default=1000)
    page.parser.add_argument("--clusters", type=int, default=large.CLUSTERS)
    options = page.options()
    with contextlib.ExitStack() as cleanups:
        stacks = {name: Stack(config=CONFIGURATION) for name in ("none", "many", "empty", "large")}
        for stack in stacks.values():
            cleanups.callback(stack.close, False)
            stack.start()
        for number in range(options.vdisks):
            stacks["many"].ask("POST", "/v1/vdisks", {"vpool": "default", "name": f"v{number}", "size_bytes": 10 << 30})
        stacks["empty"].ask("POST", "/v1/vdisks", {"vpool": "default", "name": large.NAME, "size_bytes": options.clusters * 4096})
        for name in ("none", "many", "empty"):
            stacks[name].ovsd.stop()
        large.make(stacks["large"], options.clusters)
        idles, maps = [], []
        for number in range(options.rounds):
            for what in ("idle", "map") if number % 2 == 0 else ("map", "idle"):
                if what == "idle":
                    idles.append(idle(stacks["none"], stacks["many"], options.vdisks))
                else:
                    maps.append(mapped(stacks["large"], stacks["empty"], options.clusters))
                page.note(f"round {number + 1}/{options.rounds} {what}: {(idles if what == 'idle' else maps)[-1]}")
    page.write(judge(idles, maps, options), details(maps))


if __name__ == "__main__":
    main()

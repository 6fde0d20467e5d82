"""A vDisk of 1 TiB that is wholly mapped in large extents, without the TiB: a map as if it had been written from its beginning to its
end in SCOs of 4 MiB, over the few SCOs that are there. Map, table and checkpoint are as large as they would be."""

import load
from report import run
from stack import BIN, GIB, MIB

CLUSTERS = 1 << 28
WRITTEN = 64 * MIB
PROGRAM = BIN / "examples/large_map"
NAME = "large"


def make(stack, clusters=CLUSTERS):
    """On a stack that runs; it is stopped afterwards. In its configuration nothing may be scrubbed: most of it would be given back."""
    assert PROGRAM.exists(), f"{PROGRAM} is not there: cargo build --release -p ovs-cluster --example large_map"
    stack.ask("POST", "/v1/vdisks", {"vpool": "default", "name": NAME, "size_bytes": clusters * 4096})
    load.fill([load.nbd(stack.uri(NAME))], WRITTEN)
    vdisk = stack.show(NAME)["uuid"]
    stack.ovsd.stop()
    print(run(PROGRAM, stack.state / "registry", vdisk, clusters, "sequential", timeout=580).stdout.strip(), flush=True)


def title(clusters):
    return f"{clusters * 4096 / (1 << 40):g} TiB" if clusters >= 1 << 28 else f"{clusters * 4096 // GIB} GiB"

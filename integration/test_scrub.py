"""What nobody needs is given back to the backend, under a guest that writes and under kill -9."""

import threading
import time

import pytest

from nbd_client import Connection, Writer
from stack import MIB, wait_until
from test_cli import metrics

OFTEN = """
destage:
  size: 4MiB
  after: 300ms
  sco_size: 1MiB
scrub:
  every: 200ms
  min_size: 1MiB
"""
BY_HAND = OFTEN + "  automatic: false\n"


def stored_bytes(stack):
    """Of all SCOs in the backend's folder."""
    return sum(file.stat().st_size for file in stack.root.rglob("v/*/s/*") if file.is_file())


@pytest.mark.timeout(120)
def test_space_comes_back_under_a_guest_and_under_kills(make_stack, chance):
    """A writer that never stops and never flushes, ovsd killed now and then: it reads what it wrote, and what is stored stays
    near to what is needed."""
    ovs = make_stack(OFTEN).start()
    ovs.create("v", "256MiB")
    blocks = 24 * MIB // 4096
    writer = Writer(ovs.nbd_socket, "default/v", blocks, chance, depth=32)
    for _ in range(4):
        writer.run(seconds=3)
        ovs.ovsd.kill9()
        restarting = threading.Thread(target=ovs.restart)
        restarting.start()
        writer.run(seconds=1)
        restarting.join()
    writer.drain()
    written = len(writer.acknowledged) * 4096
    task = ovs.ovs("vdisk", "scrub", "default/v", timeout=60)
    assert task["state"] == "succeeded", task
    result = task["result"]
    assert result["needed_bytes"] == written and result["unreadable"] == 0, result
    assert result["stored_bytes"] < 1.3 * written, result
    wait_until("what nobody needs is gone", lambda: stored_bytes(ovs) == result["stored_bytes"], timeout_s=10)
    writer.check()


def test_what_is_discarded_goes_when_asked_for(make_stack, chance):
    """By hand only: before that everything is where it was; metrics and statistics say what there is."""
    ovs = make_stack(BY_HAND).start()
    ovs.create("v", "64MiB")
    with Connection(ovs.nbd_socket, "default/v") as connection:
        for number in range(32):
            connection.write(number * MIB, chance.randbytes(MIB))
        kept = chance.randbytes(4096)
        connection.write(5 * MIB, kept)
        connection.flush()
        # Else what is discarded never gets to the backend.
        wait_until("it has left the write buffer", lambda: ovs.ovs("vdisk", "show", "default/v")["buffered_bytes"] == 0)
        connection.trim(8 * MIB, 24 * MIB)
        connection.flush()
        wait_until("it has left the write buffer", lambda: ovs.ovs("vdisk", "show", "default/v")["buffered_bytes"] == 0, timeout_s=10)
        before = stored_bytes(ovs)
        assert before >= 32 * MIB
        time.sleep(1)
        assert stored_bytes(ovs) == before
        result = ovs.ovs("vdisk", "scrub", "default/v", timeout=60)["result"]
        assert result["needed_bytes"] == 8 * MIB and result["stored_bytes"] < 10 * MIB, result
        wait_until("what nobody needs is gone", lambda: stored_bytes(ovs) == result["stored_bytes"], timeout_s=10)
        stats = ovs.ovs("vdisk", "stats", "default/v")
        assert stats["stored_bytes"] == result["stored_bytes"]
        assert stats["reclaimable_bytes"] == result["stored_bytes"] - result["needed_bytes"]
        assert stats["scrub_freed_bytes"] > 20 * MIB
        assert 'ovs_vdisk_stored_bytes{vpool="default",vdisk="v"' in metrics(ovs)
        assert connection.read(5 * MIB, 4096) == kept
        assert connection.read(9 * MIB, 4096) == bytes(4096)

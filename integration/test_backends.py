"""Composites of directories: made on the command line, written over NBD, a drive's folder taken away."""

import shutil

import pytest

from nbd_client import Connection
from stack import MIB, Refused, wait_until

EXPERIMENTAL = """
destage:
  after: 300ms
  sco_size: 1MiB
experimental:
  coded_backends: true
"""


def make_composite(ovs, count=4, policy="2,2,3,1"):
    """Directories on a node each, and the composite `all` of them."""
    names = [f"d{number}" for number in range(count)]
    for name in names:
        ovs.ovs("backend", "create", name, "--path", ovs.root / "drives" / name, "--node", f"n-{name}", "--site", "here")
    ovs.ovs("preset", "create", "wide", "--policy", policy, "--compression", "lz4", "--fragment", "1MiB")
    return names


def settled(ovs, vdisk):
    wait_until("it has left the write buffer", lambda: ovs.ovs("vdisk", "show", vdisk)["buffered_bytes"] == 0)


@pytest.mark.timeout(180)
def test_a_drive_of_a_composite_is_lost(make_stack, chance):
    """What was written before and after the loss is read, from a restarted ovsd too; the drive is shown as away."""
    ovs = make_stack(EXPERIMENTAL).start()
    names = make_composite(ovs)
    plan = ovs.ovs("backend", "create", "all", "--of", ",".join(names), "--preset", "wide", "--dry-run")
    assert (plan["drive_count"], plan["policies"][0]["stored_percent"]) == (4, 200), plan
    assert plan["policies"][0]["drives_lost_max"] == 2 and plan["usable_bytes"] * 2 == plan["raw_bytes"], plan
    ovs.ovs("backend", "create", "all", "--of", ",".join(names), "--preset", "wide")
    ovs.ovs("vpool", "create", "p", "--backend", "all")
    ovs.create("v", "64MiB", vpool="p")

    blocks = {number: chance.randbytes(256 << 10) for number in range(16)}
    with Connection(ovs.nbd_socket, "p/v") as connection:
        for number, data in blocks.items():
            connection.write(number * MIB, data)
        connection.flush()
        settled(ovs, "p/v")
        lost = ovs.root / "drives" / "d1"
        shutil.rmtree(lost)
        for number in range(0, 16, 5):
            blocks[number] = chance.randbytes(256 << 10)
            connection.write(number * MIB, blocks[number])
        connection.flush()
        settled(ovs, "p/v")
        for number, data in blocks.items():
            assert connection.read(number * MIB, len(data)) == data, number
    away = [drive["name"] for drive in ovs.ovs("backend", "show", "all")["drives"] if "problem" in drive]
    assert away == ["d1"]

    ovs.restart()
    with Connection(ovs.nbd_socket, "p/v") as connection:
        for number, data in blocks.items():
            assert connection.read(number * MIB, len(data)) == data, number
    assert not (lost / ".ovs-backend").exists(), "a lost drive is not begun anew"


@pytest.mark.timeout(120)
def test_what_is_not_safe_is_refused_with_what_to_do(make_stack):
    """Without the switch no vPool on a composite; no composite of what is in use; no secret on a command line or in an error."""
    ovs = make_stack().start()
    names = make_composite(ovs, 2, "1,1,1,1")
    ovs.ovs("backend", "create", "all", "--of", ",".join(names), "--preset", "wide")

    def refused(*words):
        with pytest.raises(Refused) as caught:
            ovs.ovs(*words)
        return caught.value.stderr

    assert "coded_backends: true" in refused("vpool", "create", "p", "--backend", "all")
    assert "drive of backend all" in refused("backend", "delete", "d0")
    assert "drive of backend all" in refused("backend", "create", "again", "--of", "d0", "--preset", "wide")
    assert "used by backend all" in refused("preset", "delete", "wide")
    assert "places for 5 fragments" in make_refused_by_places(ovs, refused)
    secret = ovs.root / "etc" / "ovs" / "secret"
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text("hunter2")
    secret.chmod(0o644)
    store = ("--endpoint", "http://127.0.0.1:1", "--bucket", "b", "--user-file", secret, "--secret-file", secret)
    error = refused("backend", "create", "s", "--type", "s3", *store)
    assert "0600" in error and "hunter2" not in error
    assert [backend["name"] for backend in ovs.ovs("backend", "list")] == ["all", "d0", "d1", "default"]


def make_refused_by_places(ovs, refused):
    ovs.ovs("backend", "create", "e0", "--path", ovs.root / "drives" / "e0")
    ovs.ovs("preset", "create", "large", "--policy", "4,2,5,2")
    error = refused("backend", "create", "more", "--of", "e0", "--preset", "large")
    ovs.ovs("backend", "delete", "e0")
    return error

"""The life of a composite's drives under a guest that reads back all that it writes: given up, taken away, emptied, replaced."""

import os
import subprocess
import threading

import pytest

from stack import Refused, wait_until

CONFIG = """
destage:
  after: 300ms
  sco_size: 1MiB
repair:
  grace: {grace}
  survey_every: 5s
"""

# What is not made good within this is stuck.
REPAIR_S = 240


class Guest:
    """fio that writes and verifies over NBD, again and again, until the block ends. Each round has to be good."""

    def __init__(self, ovs, vdisk, chance):
        self.argv = ["fio", "--name=j", "--ioengine=nbd", f"--uri={ovs.uri(vdisk, 'p')}", "--thread", "--iodepth=8", "--rw=randwrite",
                     "--bsrange=4k-64k", "--blockalign=4k", "--size=32M", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]
        self.chance, self.rounds, self.problem = chance, 0, None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.ending.is_set():
            argv = [*self.argv, f"--randseed={self.chance.randrange(1 << 31)}"]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
            if done.returncode != 0:
                self.problem = (done.stdout + done.stderr)[-3000:]
                return
            self.rounds += 1

    def another_round(self):
        """One that began after this was called has been verified."""
        before = self.rounds
        wait_until("the guest has read back what it wrote", lambda: self.problem or self.rounds >= before + 2, timeout_s=REPAIR_S)
        assert not self.problem, self.problem

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, failed, *_):
        self.ending.set()
        self.thread.join(timeout=300)
        assert failed or not self.problem, self.problem


def make_drive(ovs, name, node, site="here"):
    ovs.ovs("backend", "create", name, "--path", ovs.root / "drives" / name, "--node", node, "--site", site)


def make_pool(ovs, drives, policy):
    """Directories by node, the composite `all` of them, the vPool `p` on it with a vDisk `v`."""
    for name, node in drives.items():
        make_drive(ovs, name, node)
    ovs.ovs("preset", "create", "wide", "--policy", policy, "--compression", "lz4", "--fragment", "1MiB")
    ovs.ovs("backend", "create", "all", "--of", ",".join(drives), "--preset", "wide")
    ovs.ovs("vpool", "create", "p", "--backend", "all")
    ovs.create("v", "32MiB", vpool="p")


def take_away(ovs, *names):
    for name in names:
        os.rename(ovs.root / "drives" / name, ovs.root / f"away-{name}")


def drives_of(ovs, composite="all"):
    return {drive["name"]: drive["duty"] for drive in ovs.ovs("backend", "show", composite)["drives"]}


def until_drives(ovs, expected, composite="all"):
    wait_until(f"its drives are {sorted(expected)}", lambda: sorted(drives_of(ovs, composite)) == sorted(expected), timeout_s=REPAIR_S)


def until_safe(ovs, losses):
    """What is stored survives so many more losses, all of it."""

    def is_safe():
        upkeep = ovs.ovs("backend", "show", "all")["upkeep"]
        least = min(share["losses"] for share in upkeep["safety"])
        if upkeep["unreadable"] or least < losses:
            raise AssertionError(upkeep)
        return upkeep

    return wait_until(f"all survives {losses} more losses", is_safe, timeout_s=REPAIR_S)


def files_of(folder):
    return {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


SEVEN = {f"d{number}": f"n{number}" for number in range(7)}


@pytest.mark.timeout(900)
def test_a_silent_drive_is_given_up_and_replaced(make_stack, chance):
    """By itself after the grace; it stays lost when it is back with what it had; a new one in its place, and all is as safe as ever."""
    ovs = make_stack(CONFIG.format(grace="3s")).start()
    make_pool(ovs, SEVEN, "4,2,5,2")
    with Guest(ovs, "v", chance) as guest:
        guest.another_round()
        take_away(ovs, "d1")
        rest = [name for name in SEVEN if name != "d1"]
        until_drives(ovs, rest)
        guest.another_round()
        old = files_of(ovs.root / "away-d1")
        os.rename(ovs.root / "away-d1", ovs.root / "drives" / "d1")
        with pytest.raises(Refused) as caught:
            ovs.ovs("backend", "drive", "add", "all", "d1")
        assert "is old" in caught.value.stderr and "ovs backend delete d1" in caught.value.stderr
        make_drive(ovs, "d7", "n7")
        ovs.ovs("backend", "drive", "add", "all", "d7")
        guest.another_round()
    ovs.ovsd.kill9()
    ovs.restart()
    with Guest(ovs, "v", chance) as guest:
        guest.another_round()
    assert sorted(drives_of(ovs)) == sorted([*rest, "d7"])
    until_safe(ovs, 2)
    assert files_of(ovs.root / "drives" / "d1") == old, "nobody has touched what came back"
    assert any((ovs.root / "drives" / "d7").rglob("s/*")), "the new drive has its share"


NODES = {f"d{number}": f"n{number // 2}" for number in range(8)}


@pytest.mark.timeout(900)
def test_a_node_is_lost(make_stack, chance):
    """Two drives at once, of which an object of few bytes may have been all: only by who accepts that. Nothing of the guest's is lost."""
    ovs = make_stack(CONFIG.format(grace="off")).start()
    make_pool(ovs, NODES, "4,2,5,2")
    with Guest(ovs, "v", chance) as guest:
        guest.another_round()
    wait_until("it has left the write buffer", lambda: ovs.show("v", "p")["buffered_bytes"] == 0)
    until_safe(ovs, 2)
    take_away(ovs, "d2", "d3")
    ovs.ovs("backend", "drive", "remove", "all", "d2", "--lost", "--accept-loss", "--no-wait")
    with pytest.raises(Refused) as caught:
        ovs.ovs("backend", "drive", "remove", "all", "d3", "--lost")
    assert "--accept-loss" in caught.value.stderr, caught.value.stderr
    ovs.ovs("backend", "drive", "remove", "all", "d3", "--lost", "--accept-loss", timeout=REPAIR_S)
    until_drives(ovs, [name for name in NODES if name not in ("d2", "d3")])
    with Guest(ovs, "v", chance) as guest:
        guest.another_round()
        for name in ("d8", "d9"):
            make_drive(ovs, name, "n9")
            ovs.ovs("backend", "drive", "add", "all", name)
        guest.another_round()
    until_safe(ovs, 2)


@pytest.mark.timeout(900)
def test_a_site_of_a_composite_of_composites_is_lost(make_stack, chance):
    """Each site is a mirror, and each object on all of them: a site that is silent is given up by itself."""
    ovs = make_stack(CONFIG.format(grace="3s")).start()
    ovs.ovs("preset", "create", "mirror", "--policy", "1,1,2,1", "--policy", "1,0,1,1")
    ovs.ovs("preset", "create", "sites", "--policy", "1,2,2,1", "--fragment", "1MiB")
    sites = ["east", "south", "west"]
    for site in sites:
        for number in "12":
            make_drive(ovs, f"{site}{number}", f"{site}-{number}", site)
        ovs.ovs("backend", "create", site, "--of", f"{site}1,{site}2", "--preset", "mirror")
    ovs.ovs("backend", "create", "all", "--of", ",".join(sites), "--preset", "sites")
    ovs.ovs("vpool", "create", "p", "--backend", "all")
    ovs.create("v", "32MiB", vpool="p")
    with Guest(ovs, "v", chance) as guest:
        guest.another_round()
        take_away(ovs, "west1", "west2")
        until_drives(ovs, ["east", "south"])
        guest.another_round()
    until_safe(ovs, 1)


@pytest.mark.timeout(900)
def test_a_drive_leaves_and_is_free(make_stack, chance):
    """Emptied while it is read, over a crash; afterwards it is anybody's. The next one would leave too few places."""
    ovs = make_stack(CONFIG.format(grace="off")).start()
    make_pool(ovs, SEVEN, "4,2,5,2")
    with Guest(ovs, "v", chance) as guest:
        guest.another_round()
        begun = ovs.ovs("backend", "drive", "remove", "all", "d4", "--no-wait")
        assert begun["kind"] == "backend.drive.remove", begun
        guest.another_round()
    ovs.ovsd.kill9()
    ovs.restart()
    with Guest(ovs, "v", chance) as guest:
        until_drives(ovs, [name for name in SEVEN if name != "d4"])
        wait_until("it is empty", lambda: not files_of(ovs.root / "drives" / "d4"), timeout_s=REPAIR_S)
        guest.another_round()
    until_safe(ovs, 2)
    ovs.ovs("vpool", "create", "q", "--backend", "d4")
    with pytest.raises(Refused) as caught:
        ovs.ovs("backend", "drive", "remove", "all", "d5")
    assert "places for 5 fragments of an object instead of 6" in caught.value.stderr, caught.value.stderr

"""Real stores: Ceph's gateway by S3 and by Swift's API, OpenStack Swift, an emulator of Azure's; composites of them and of directories.

The client is core/remote/examples/conformance.rs: the suite that every backend passes, a probe, and a load that goes on
while stores are killed and held, and checks each byte it reads. Then ovsd on them, with guests.
"""

import json
import subprocess
import tempfile
import time

import pytest

from engines import Azurite, Ceph, Swift, composite, folder
from nbd_client import Connection
from stack import BIN, MIB, ROOTS, Refused, run, unique, wait_until
from test_drives import CONFIG, REPAIR_S, Guest, drives_of, files_of, make_drive, until_drives, until_safe

CLIENT = BIN / "examples" / "conformance"


@pytest.fixture(scope="module")
def ceph():
    engine = Ceph()
    try:
        yield engine.start()
    finally:
        engine.close()


@pytest.fixture(scope="module")
def swift():
    engine = Swift()
    try:
        yield engine.start()
    finally:
        engine.close()


@pytest.fixture(scope="module")
def azure():
    engine = Azurite()
    try:
        yield engine.start()
    finally:
        engine.close()


REAL = ["ceph-s3", "ceph-swift", "swift-swift"]


@pytest.fixture(params=[*REAL, "azure-azure"])
def door(request):
    """A store, in a place of its own."""
    engine, protocol = request.param.split("-")
    return getattr(request.getfixturevalue(engine), protocol)(f"{unique('t')}/pool")


def client(door, *argv, timeout=60):
    """Runs the client to its end; what it printed."""
    done = run(CLIENT, door.argument(), *argv, timeout=timeout, env=door.environment(), check=False)
    for _, secret in door.credentials:
        assert secret not in done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Load:
    """The client's load, under way beside the test."""

    def __init__(self, door, seconds):
        self.process = subprocess.Popen([CLIENT, door.argument(), "load", str(seconds)], env=door.environment(),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def totals(self):
        """It must have gone well: nothing but `Retry`, each within its bound, none after the store was back."""
        out, errors = self.process.communicate(timeout=90)
        assert self.process.returncode == 0, out + errors
        totals = json.loads(out)
        print(totals, errors)
        assert totals["retries_at_the_end"] == 0, errors
        assert totals["puts"] > 20 and totals["gets"] > 20 and totals["deletes"] > 2
        return totals

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def test_the_suite_of_all_backends(door):
    client(door, "suite")


def test_a_probe_says_what_the_store_does(door):
    probe = json.loads(client(door, "probe"))
    good = {key for key, value in probe.items() if value is True}
    assert good == {"reads_after_put", "reads_ranges", "lists_after_put", "lists_in_order", "deletes", "lists_after_delete"}
    assert probe["put_if_absent"] == ("not_offered" if door.store["kind"] == "swift" else "one_winner")


def test_a_gateway_that_is_killed_and_held(ceph):
    with Load(ceph.s3(unique("t")), 30) as load:
        time.sleep(2)
        ceph.gateway.kill9()
        # Longer than an operation tries.
        time.sleep(4.5)
        ceph.gateway.start()
        wait_until("the gateway answers", ceph.answers, 30)
        time.sleep(1)
        with ceph.gateway.held():
            time.sleep(4.5)
        assert load.totals()["retries"] > 0


def test_an_osd_that_is_killed_and_held(ceph):
    with Load(ceph.s3(unique("t")), 30) as load:
        time.sleep(2)
        with ceph.osd.held():
            time.sleep(4.5)
        ceph.osd.kill9()
        time.sleep(1)
        ceph.osd.start()
        load.totals()


def test_swift_servers_that_are_killed_and_held(swift):
    with Load(swift.swift(unique("t")), 30) as load:
        time.sleep(2)
        swift.proxy.kill9()
        time.sleep(4.5)
        swift.proxy.start()
        wait_until("the proxy answers", swift.answers, 30)
        time.sleep(1)
        with swift.servers["object"].held():
            time.sleep(4.5)
        assert load.totals()["retries"] > 0


def test_azure_that_is_stopped_and_held(azure):
    """Stopped and not killed: the emulator would have lost what it acknowledged last."""
    with Load(azure.azure(unique("t")), 30) as load:
        time.sleep(2)
        azure.server.stop()
        time.sleep(4.5)
        azure.server.start()
        wait_until("it answers", azure.answers, 30)
        time.sleep(1)
        with azure.server.held():
            time.sleep(4.5)
        assert load.totals()["retries"] > 0


def test_tokens_that_expire_in_mid_operation(swift):
    with Load(swift.swift(unique("t")), 6) as load:
        for _ in range(4):
            time.sleep(1)
            swift.forget_tokens()
        # A new token each time, and the caller sees nothing of it.
        assert load.totals()["retries"] == 0


# Those of a store of each kind, and directories d0 and d1.
COMPOSITES = {
    "2,2,3,1": ("ceph-s3", "swift", "d0", "d1"),
    "2,1,3,1": ("swift", "d0", "ceph-s3"),
    "1,2,2,1": ("ceph-s3", "ceph-swift", "swift"),
}


@pytest.fixture
def make_composite(ceph, swift):
    """Of a policy, in a place of its own on each drive."""
    with tempfile.TemporaryDirectory(prefix="ovs-drives-", dir=ROOTS) as directories:

        def make(policy):
            doors = {"ceph-s3": ceph.s3, "ceph-swift": ceph.swift, "swift": swift.swift}
            own = lambda name: doors[name](unique("t")) if name in doors else folder(f"{directories}/{name}")  # noqa: E731
            return composite(policy, *map(own, COMPOSITES[policy]))

        yield make


@pytest.mark.parametrize("policy", COMPOSITES)
def test_the_suite_of_composites(make_composite, policy):
    client(make_composite(policy), "suite")


@pytest.mark.parametrize("victim", ["ceph", "swift"])
def test_a_composite_of_which_one_store_is_killed_and_held(make_composite, ceph, swift, victim):
    """Whoever puts, reads and lists notices nothing. Only a delete has to wait for all drives."""
    engine, program = (ceph, ceph.gateway) if victim == "ceph" else (swift, swift.proxy)
    with Load(make_composite("2,2,3,1"), 44) as load:
        time.sleep(2)
        program.kill9()
        time.sleep(4.5)
        program.start()
        wait_until("it answers", engine.answers, 30)
        time.sleep(1)
        with program.held():
            time.sleep(8)
        totals = load.totals()
        assert totals["retries"] == totals["retries_of_deletes"]
        # Somebody met the trouble: a delete that was told to come back, or whoever waited for the store before others answered.
        assert totals["retries"] > 0 or totals["longest_ms"] > 1000


def test_a_wrong_password_is_said_at_once(ceph, swift):
    for door in (ceph.s3("t"), ceph.swift("t"), swift.swift("t")):
        started = time.monotonic()
        [(_, secret)] = door.credentials
        done = run(CLIENT, door.argument(), "probe", check=False, env=door.environment(f"not-{secret}"))
        assert done.returncode != 0 and ("HTTP 401" in done.stderr or "HTTP 403" in done.stderr)
        assert time.monotonic() - started < 5 and secret not in done.stderr


CONFIG = """
destage:
  after: 300ms
  sco_size: 1MiB
"""


def store_options(ovs, name, door):
    """Which store, as the command line takes it; its credentials are in files of this ovsd's."""
    store, [(user, secret)] = door.store, door.credentials
    secrets = ovs.root / "etc" / "ovs" / "secrets" / "stores"
    secrets.mkdir(parents=True, exist_ok=True)
    files = secrets / f"{name}-user", secrets / f"{name}-secret"
    for file, text in zip(files, (user, secret)):
        file.write_text(text)
        file.chmod(0o600)
    kind = {"azblob": "azure"}.get(store["kind"], store["kind"])
    place = store.get("endpoint") or store["auth"]
    bucket = store.get("bucket") or store["container"]
    region = ["--region", store["region"]] if "region" in store else []
    return ("--type", kind, "--endpoint", place, "--bucket", bucket, *region, "--prefix", store["prefix"],
            "--user-file", files[0], "--secret-file", files[1])


def make_store(ovs, name, door):
    """The store as a backend of ovsd's."""
    return ovs.ovs("backend", "create", name, *store_options(ovs, name, door))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("door", REAL, indirect=True)
@pytest.mark.parametrize("is_composite", [False, True])
def test_a_vpool_on_a_store(make_stack, chance, door, is_composite):
    """By itself, and as a drive beside directories of which one goes: written, overwritten, read by the next ovsd, recovered on another host
    from the store alone, deleted there."""
    ovs = make_stack(CONFIG).start()
    made = make_store(ovs, "cloud", door)
    assert made["probe"]["is_usable"] and made["path"].endswith(door.store["prefix"]), made
    if is_composite:
        for name in ("d0", "d1"):
            ovs.ovs("backend", "create", name, "--path", ovs.root / "drives" / name, "--node", name)
        ovs.ovs("preset", "create", "wide", "--policy", "1,2,2,1", "--compression", "lz4")
        ovs.ovs("backend", "create", "all", "--of", "d0,d1,cloud", "--preset", "wide")
    ovs.ovs("vpool", "create", "p", "--backend", "all" if is_composite else "cloud")
    ovs.create("v", "64MiB", vpool="p")
    blocks = {}

    def write_and_settle(connection, numbers):
        for number in numbers:
            blocks[number] = chance.randbytes(256 << 10)
            connection.write(number * MIB, blocks[number])
        connection.flush()
        wait_until("it has left the write buffer", lambda: ovs.ovs("vdisk", "show", "p/v")["buffered_bytes"] == 0, 60)

    with Connection(ovs.nbd_socket, "p/v") as connection:
        write_and_settle(connection, range(8))
        if is_composite:
            (ovs.root / "drives" / "d1").rename(ovs.root / "away")
        write_and_settle(connection, range(0, 8, 3))
    ovs.ovsd.stop()
    ovs.restart()

    def check(on):
        with Connection(on.nbd_socket, "p/v") as connection:
            for number, data in blocks.items():
                assert connection.read(number * MIB, len(data)) == data, number
        for secret in door.credentials[0]:
            assert secret not in on.ovsd.log.read_text() + (on.state / "vpools.json").read_text()

    check(ovs)
    if is_composite:
        (ovs.root / "away").rename(ovs.root / "drives" / "d1")
    ovs.ovsd.stop()
    other = make_stack(CONFIG).start()
    place = store_options(other, "cloud", door)
    assert "there is no vPool q" in refused(other, "vpool", "recover", "q", *place)
    other.ovs("vpool", "recover", "p", *place, timeout=120)
    check(other)
    other.ovsd.stop()
    other.restart()
    check(other)
    other.ovs("vdisk", "delete", "p/v", "--purge")
    wait_until("the vPool is gone", lambda: not refused(other, "vpool", "delete", "p"), 60)
    other.ovs("backend", "delete", "all" if is_composite else "cloud")


def make_mixed_pool(ovs, policy, stores, directories):
    """The vPool `p` with a vDisk `v` on a composite of stores and directories, each a node of its own."""
    for name, door in stores.items():
        make_store(ovs, name, door)
    for name in directories:
        make_drive(ovs, name, name)
    ovs.ovs("preset", "create", "mixed", "--policy", policy, "--compression", "lz4", "--fragment", "1MiB")
    ovs.ovs("backend", "create", "all", "--of", ",".join([*stores, *directories]), "--preset", "mixed")
    ovs.ovs("vpool", "create", "p", "--backend", "all")
    ovs.create("v", "32MiB", vpool="p")


@pytest.mark.timeout(400)
def test_a_guest_while_stores_are_killed_and_held(make_stack, chance, ceph, swift):
    """One after the other, and both at once: it sees no error, and all is as safe as before when they are back."""
    ovs = make_stack(CONFIG.format(grace="off")).start()
    make_mixed_pool(ovs, "2,2,3,1", {"cloud": ceph.s3(unique("t")), "swift": swift.swift(unique("t"))}, ["d0", "d1"])
    with Guest(ovs, "v", chance) as guest:
        guest.another_round()
        ceph.gateway.kill9()
        guest.another_round()
        ceph.gateway.start()
        wait_until("the gateway answers", ceph.answers, 30)
        with swift.proxy.held():
            guest.another_round()
        ceph.osd.kill9()
        swift.servers["object"].kill9()
        # Too few drives for anything to be acknowledged: what is written stays in the write buffer, what is read waits.
        time.sleep(15)
        ceph.osd.start()
        swift.servers["object"].start()
        guest.another_round()
    until_safe(ovs, 2)
    assert set(drives_of(ovs).values()) == {"serving"}


@pytest.mark.timeout(400)
def test_a_store_that_is_lost_for_good_is_replaced(make_stack, chance, ceph, swift):
    """It comes back empty under its old address, and is not asked again."""
    ovs = make_stack(CONFIG.format(grace="off")).start()
    stores = {"cloud": ceph.s3(unique("t")), "swift": swift.swift(unique("t"))}
    make_mixed_pool(ovs, "2,2,3,1", stores, ["d0", "d1", "d2"])
    with Guest(ovs, "v", chance) as guest:
        guest.another_round()
        swift.is_emptied()
        ovs.ovs("backend", "drive", "remove", "all", "swift", "--lost", timeout=REPAIR_S)
        until_drives(ovs, ["cloud", "d0", "d1", "d2"])
        guest.another_round()
        make_store(ovs, "other", ceph.swift(unique("t")))
        ovs.ovs("backend", "drive", "add", "all", "other")
        guest.another_round()
    ovs.ovsd.kill9()
    ovs.restart()
    with Guest(ovs, "v", chance) as guest:
        guest.another_round()
    until_safe(ovs, 2)


def refused(ovs, *words):
    try:
        ovs.ovs(*words)
    except Refused as error:
        return error.stderr
    return None

"""The remote leaf (core/remote) against real stores: Ceph's gateway by S3 and by Swift's API, and OpenStack Swift.

The client is core/remote/examples/conformance.rs: the suite that every backend passes, a probe, and a load that goes on
while the store is killed and held, and checks each byte it reads.
"""

import json
import os
import subprocess
import time

import pytest

from engines import Ceph, Swift
from nbd_client import Connection
from stack import BIN, MIB, Refused, run, unique, wait_until

CLIENT = BIN / "examples" / "conformance"
# The client's bound for one operation: RETRY + 3 * PATIENCE in conformance.rs.
BOUND_MS = 10_000


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


@pytest.fixture(params=["ceph-s3", "ceph-swift", "swift"])
def door(request):
    """A store's description, name and secret, in a place of its own."""
    engine = request.getfixturevalue(request.param.split("-")[0])
    return getattr(engine, "s3" if request.param == "ceph-s3" else "swift")(f"{unique('t')}/pool")


def environment(name, secret):
    return {**os.environ, "RUST_BACKTRACE": "0", "OVS_STORE_NAME": name, "OVS_STORE_SECRET": secret}


def client(door, *argv, timeout=60):
    """Runs the client to its end; what it printed."""
    store, name, secret = door
    done = run(CLIENT, json.dumps(store), *argv, timeout=timeout, env=environment(name, secret), check=False)
    assert secret not in done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Load:
    """The client's load, under way beside the test."""

    def __init__(self, door, seconds):
        store, name, secret = door
        self.process = subprocess.Popen([CLIENT, json.dumps(store), "load", str(seconds)], env=environment(name, secret),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def totals(self):
        """It must have gone well: nothing but `Retry`, each within its bound, none after the store was back."""
        out, errors = self.process.communicate(timeout=90)
        assert self.process.returncode == 0, out + errors
        totals = json.loads(out)
        print(totals)
        assert totals["longest_ms"] < BOUND_MS and totals["retries_at_the_end"] == 0
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
    assert probe["put_if_absent"] == ("one_winner" if door[0]["kind"] == "s3" else "not_offered")


def test_a_gateway_that_is_killed_and_held(ceph):
    with Load(ceph.s3(unique("t")), 20) as load:
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
    with Load(ceph.s3(unique("t")), 20) as load:
        time.sleep(2)
        with ceph.osd.held():
            time.sleep(4.5)
        ceph.osd.kill9()
        time.sleep(1)
        ceph.osd.start()
        load.totals()


def test_swift_servers_that_are_killed_and_held(swift):
    with Load(swift.swift(unique("t")), 20) as load:
        time.sleep(2)
        swift.proxy.kill9()
        time.sleep(4.5)
        swift.proxy.start()
        wait_until("the proxy answers", swift.answers, 30)
        time.sleep(1)
        with swift.servers["object"].held():
            time.sleep(4.5)
        assert load.totals()["retries"] > 0


def test_tokens_that_expire_in_mid_operation(swift):
    with Load(swift.swift(unique("t")), 6) as load:
        for _ in range(4):
            time.sleep(1)
            swift.forget_tokens()
        # A new token each time, and the caller sees nothing of it.
        assert load.totals()["retries"] == 0


def test_a_wrong_password_is_said_at_once(ceph, swift):
    for store, name, secret in (ceph.s3("t"), ceph.swift("t"), swift.swift("t")):
        started = time.monotonic()
        wrong = f"not-{secret}"
        done = run(CLIENT, json.dumps(store), "probe", check=False, env=environment(name, wrong))
        assert done.returncode != 0 and ("HTTP 401" in done.stderr or "HTTP 403" in done.stderr)
        assert time.monotonic() - started < 5 and secret not in done.stderr


EXPERIMENTAL = """
destage:
  after: 300ms
  sco_size: 1MiB
experimental:
  coded_backends: true
"""


def make_store(ovs, name, door):
    """The store as a backend of ovsd's; its credentials are in files."""
    store, user, secret = door
    folder = ovs.root / "etc" / "ovs" / "secrets" / "stores"
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in (("user", user), ("secret", secret)):
        (folder / file).write_text(text)
        (folder / file).chmod(0o600)
    place = store["endpoint"] if store["kind"] == "s3" else store["auth"]
    bucket = store["bucket"] if store["kind"] == "s3" else store["container"]
    region = ["--region", store["region"]] if "region" in store else []
    return ovs.ovs("backend", "create", name, "--type", store["kind"], "--endpoint", place, "--bucket", bucket, *region, "--prefix", store["prefix"],
                   "--user-file", folder / "user", "--secret-file", folder / "secret")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("is_composite", [False, True])
def test_a_vpool_on_a_store(make_stack, chance, door, is_composite):
    """By itself, and as a drive beside directories of which one goes: written, overwritten, read by the next ovsd, deleted."""
    ovs = make_stack(EXPERIMENTAL).start()
    made = make_store(ovs, "cloud", door)
    assert made["probe"]["is_usable"] and made["path"].endswith(door[0]["prefix"]), made
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
    with Connection(ovs.nbd_socket, "p/v") as connection:
        for number, data in blocks.items():
            assert connection.read(number * MIB, len(data)) == data, number
    for secret in door[1:]:
        assert secret not in ovs.ovsd.log.read_text() + (ovs.state / "vpools.json").read_text()
    if is_composite:
        (ovs.root / "away").rename(ovs.root / "drives" / "d1")
    ovs.ovs("vdisk", "delete", "p/v", "--purge")
    wait_until("the vPool is gone", lambda: not refused(ovs, "vpool", "delete", "p"), 60)
    ovs.ovs("backend", "delete", "all" if is_composite else "cloud")


def refused(ovs, *words):
    try:
        ovs.ovs(*words)
    except Refused as error:
        return error.stderr
    return None

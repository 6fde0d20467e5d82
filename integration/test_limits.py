"""What a vDisk's guests may do per second, as fio counts it; set, shown, kept and lifted."""

import json
import subprocess
import time

import pytest

from nbd_client import FLUSH, READ, WRITE, Connection, Gone
from stack import MIB, Refused, run, wait_until
from test_cli import metrics

SECONDS = 6
# The limits, how fio goes at them, and what it is to find: IOPS or bytes per second of reads or writes.
CASES = {
    "one-at-a-time": (["--iops", "50"], ["--bs=4k", "--iodepth=1", "--name=guest", "--rw=randwrite"], {("write", "iops"): 50}),
    "deep": (["--iops", "1000"], ["--bs=4k", "--iodepth=64", "--name=guest", "--rw=randread"], {("read", "iops"): 1000}),
    "bandwidth": (["--bandwidth", "8MiB"], ["--bs=64k", "--iodepth=8", "--name=guest", "--rw=randwrite"], {("write", "bw_bytes"): 8 * MIB}),
    "large": (["--read-bandwidth", "20MiB/s"], ["--bs=1m", "--iodepth=2", "--name=guest", "--rw=read"], {("read", "bw_bytes"): 20 * MIB}),
    "each": (
        ["--read-iops", "300", "--write-iops", "100"],
        ["--bs=4k", "--iodepth=8", "--name=reads", "--rw=randread", "--name=writes", "--rw=randwrite"],
        {("read", "iops"): 300, ("write", "iops"): 100},
    ),
    "trim": (["--write-iops", "200", "--write-bandwidth", "64KiB"], ["--bs=64k", "--iodepth=4", "--name=guest", "--rw=randtrim"], {("trim", "iops"): 200}),
}


def fio(ovs, name, *options):
    """fio at a vDisk, under way."""
    command = ["fio", "--ioengine=nbd", f"--uri={ovs.uri(name)}", "--size=64M", "--time_based", f"--runtime={SECONDS}", "--randrepeat=0",
               "--group_reporting", "--output-format=json", *options]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def found(process, timeout_s=60):
    try:
        output, errors = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors + output[-2000:]
    return json.loads(output[output.index("{"):])["jobs"][0]


@pytest.mark.timeout(120)
def test_limits_hold_within_5_percent(ovs):
    """All at once: no vDisk takes from another."""
    for name, (limits, _, _) in CASES.items():
        ovs.create(name, "64MiB", *limits)
    ovs.create("burst", "64MiB", "--iops", "100", "--iops-burst", "400", "--burst-time", "3s")
    jobs = {name: fio(ovs, name, *options) for name, (_, options, _) in CASES.items()}
    # 400 a second for 3 s, and 100 for as long.
    jobs["burst"] = fio(ovs, "burst", "--bs=4k", "--iodepth=8", "--name=guest", "--rw=randwrite")
    expected = {name: rates for name, (_, _, rates) in CASES.items()} | {"burst": {("write", "iops"): 250}}
    wrong = []
    for name, job in jobs.items():
        job = found(job)
        for (kind, unit), rate in expected[name].items():
            off = 100 * (job[kind][unit] / rate - 1)
            print(f"{name}: {kind} {unit} {job[kind][unit]:.0f} of {rate}: {off:+.1f} %")
            if abs(off) > 5:
                wrong.append((name, kind, unit, job[kind][unit], rate))
    assert not wrong, wrong
    stats = ovs.ovs("vdisk", "stats", "default/deep")
    # 64 requests are always under way, and all but one of them wait.
    assert stats["throttled_count"] > 4000 and stats["throttled_ms"] > 60 * 1000 * (SECONDS - 1), stats


def test_a_guest_that_waits_is_let_go(ovs):
    """Its flush is not held back; without limits it goes on at once."""
    ovs.create("v", "64MiB", "--iops", "1")
    with Connection(ovs.nbd_socket, "default/v") as connection:
        for _ in range(20):
            connection.submit(READ, 0, 4096, tag="read")
        connection.submit(FLUSH, tag="flush")
        tags = []
        while "flush" not in tags:
            tags.append(connection.reply()[3])
        assert len(tags) < 10, "the flush waited"
        assert "limits" not in ovs.ovs("vdisk", "limits", "default/v", "--none")
        while len(tags) < 21:
            tags.append(connection.reply()[3])


def submit_writes(ovs, connection, count, data=b""):
    """Writes of which most have a long time to wait; comes back when one is answered."""
    for number in range(count):
        connection.submit(WRITE, 4096 * number, 4096, data.ljust(4096, b"\0"))
    assert connection.reply()[1] == 0
    assert ovs.ovs("vdisk", "stats", "default/v")["throttled_count"] > count - 10


@pytest.mark.parametrize("end", ["cut off", "dies"])
def test_what_a_lost_client_had_to_wait_with_is_never_done(ovs, end):
    """Neither before nor after limits are lifted, and nobody waits for its turns."""
    ovs.create("v", "64MiB", "--iops", "1")
    with Connection(ovs.nbd_socket, "default/v", timeout_s=20) as connection:
        submit_writes(ovs, connection, 100, b"old")
        if end == "cut off":
            ovs.ovs("vdisk", "detach", "default/v", "--force", timeout=20)
            with pytest.raises(Gone):
                while True:
                    connection.reply()
    wait_until("nobody is attached", lambda: ovs.show("v")["attachment_count"] == 0)
    with Connection(ovs.nbd_socket, "default/v", timeout_s=20) as connection:
        # It owes for no more than the one that was begun last.
        begun = time.monotonic()
        connection.write(4096 * 99, b"new".ljust(4096))
        assert time.monotonic() - begun < 3
        ovs.ovs("vdisk", "limits", "default/v", "--none")
        contents = connection.read(0, 4096 * 100)
    written = [contents[at : at + 3] for at in range(0, len(contents), 4096)]
    assert written.count(b"old") < 10 and written[50:99] == [bytes(3)] * 49 and written[99] == b"new", written


def test_a_stop_does_not_wait_for_limits(ovs):
    """What is under way is answered, and well."""
    ovs.create("v", "64MiB", "--iops", "1")
    with Connection(ovs.nbd_socket, "default/v", timeout_s=20) as connection:
        submit_writes(ovs, connection, 100)
        ovs.ovsd.stop(timeout_s=20)
        for _ in range(99):
            assert connection.reply()[1] == 0
    ovs.restart()


def test_limits_are_kept(ovs):
    """Over kill -9, and after everything but the backend was lost."""
    shown = ovs.create("v", "64MiB", "--iops", "500", "--iops-burst", "2000")
    assert shown["limits"] == {"total": {"iops": 500, "iops_burst": 2000}}
    changed = ovs.ovs("vdisk", "limits", "default/v", "--write-bandwidth", "10MiB", "--burst-time", "10s")
    limits = {"total": {"iops": 500, "iops_burst": 2000}, "write": {"bytes_per_s": 10 * MIB}, "burst_s": 10}
    assert changed["limits"] == limits
    for bad, says in [
        (["--iops", "0"], "1 to 100000000"),
        (["--iops", "3000"], "at least the 3000"),
        (["--bandwidth", "100"], "64KiB"),
        (["--read-iops-burst", "9"], "only beside read.iops"),
    ]:
        with pytest.raises(Refused) as error:
            ovs.ovs("vdisk", "limits", "default/v", *bad)
        assert error.value.code == 1 and says in error.value.stderr, error.value
    ovs.ovsd.kill9()
    ovs.restart()
    assert ovs.ovs("vdisk", "limits", "default/v") == limits
    text = metrics(ovs)
    assert 'ovs_vdisk_limit_iops{vpool="default",vdisk="v"' in text and 'of="total"} 500' in text
    ovs.ovsd.stop()
    for lost in ("registry", "buffer", "vpools.json"):
        run("rm", "-rf", ovs.state / lost)
    backend = ovs.state / "backend/default"
    kept = ovs.state.parent / "kept"
    backend.rename(kept)
    ovs.configure("default_vpool:\n  create: false\nbuffer:\n  size: 256MiB\n  segment_size: 16MiB\n")
    ovs.restart()
    task = ovs.ovs("vpool", "recover", "default", "--backend", str(kept), timeout=60)
    assert task["state"] == "succeeded", task
    assert ovs.show("v")["limits"] == limits
    assert ovs.ovs("vdisk", "clone", "default/v", "default/w").get("limits") is None

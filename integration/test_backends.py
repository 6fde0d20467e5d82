"""Composites of directories: made on the command line, written over NBD, a drive's folder taken away."""

import shutil

import pytest

from nbd_client import Connection
from stack import MIB, Refused, wait_until

CONFIG = """
destage:
  after: 300ms
  sco_size: 1MiB
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
    ovs = make_stack(CONFIG).start()
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

    ovs.ovsd.stop()
    ovs.restart()
    with Connection(ovs.nbd_socket, "p/v") as connection:
        for number, data in blocks.items():
            assert connection.read(number * MIB, len(data)) == data, number
    assert not lost.exists(), "a lost drive is not begun anew"


def refusing(ovs):
    def refused(*words):
        with pytest.raises(Refused) as caught:
            ovs.ovs(*words)
        return caught.value.stderr

    return refused


def secret_file(ovs, place, text, mode=0o600):
    path = ovs.root / "etc" / "ovs" / "secrets" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def s3(*files):
    user, secret = files if len(files) == 2 else files * 2
    return ("s", "--type", "s3", "--endpoint", "http://127.0.0.1:1", "--bucket", "b", "--user-file", user, "--secret-file", secret)


@pytest.mark.timeout(120)
def test_what_is_in_use_is_refused_with_what_to_do(make_stack):
    """No composite of what is in use, and nothing is forgotten that is."""
    ovs = make_stack().start()
    names = make_composite(ovs, 2, "1,1,1,1")
    ovs.ovs("backend", "create", "all", "--of", ",".join(names), "--preset", "wide")
    refused = refusing(ovs)
    assert "drive of backend all" in refused("backend", "delete", "d0")
    assert "drive of backend all" in refused("backend", "create", "again", "--of", "d0", "--preset", "wide")
    assert "used by backend all" in refused("preset", "delete", "wide")
    assert "places for 5 fragments" in make_refused_by_places(ovs, refused)
    assert [backend["name"] for backend in ovs.ovs("backend", "list")] == ["all", "d0", "d1", "default"]


@pytest.mark.timeout(120)
def test_secrets_are_read_where_they_may_be_and_shown_nowhere(make_stack):
    """Not in an error, a listing, vpools.json or the log, whether ovsd could read them or not."""
    ovs = make_stack(CONFIG).start()
    refused = refusing(ovs)
    secret, key = "hunter2-hunter2", "5ec2e700" * 8
    good = secret_file(ovs, "stores/secret", secret)
    key_file = secret_file(ovs, "keys/key", key)
    link = good.with_name("link")
    link.symlink_to(key_file)
    answers = [refused("backend", "create", *s3(good))]
    assert "127.0.0.1:1" in answers[0], answers
    for bad, words in (
        (secret_file(ovs, "stores/readable", secret, 0o644), "0600"),
        (secret_file(ovs, "../token", secret), "lies outside"),
        (key_file, "lies outside"),
        (link, "symbolic link"),
    ):
        answers.append(refused("backend", "create", *s3(good, bad)))
        assert words in answers[-1], answers
    answers.append(refused("preset", "create", "e", "--policy", "1,0,1,1", "--encryption", "aes-256-gcm", "--key-file", good))
    ovs.ovs("preset", "create", "e", "--policy", "1,0,1,1", "--encryption", "aes-256-gcm", "--key-file", key_file)
    ovs.ovs("backend", "create", "d", "--path", ovs.root / "d")
    ovs.ovs("backend", "create", "c", "--of", "d", "--preset", "e")
    answers += [str(ovs.ovs(kind, "list")) for kind in ("backend", "preset")]
    answers.append((ovs.state / "vpools.json").read_text())
    assert "wrapped" in answers[-1]
    answers.append(ovs.ovsd.log.read_text())
    for answer in answers:
        assert secret not in answer and "5ec2e7" not in answer, answer


def make_refused_by_places(ovs, refused):
    ovs.ovs("backend", "create", "e0", "--path", ovs.root / "drives" / "e0")
    ovs.ovs("preset", "create", "large", "--policy", "4,2,5,2")
    error = refused("backend", "create", "more", "--of", "e0", "--preset", "large")
    ovs.ovs("backend", "delete", "e0")
    return error

"""`ovs` from end to end: every verb, JSON that another program can read, exit codes that a script can rely on."""

import json
import os
import subprocess
import threading
import time

import pytest

from nbd_client import Connection
from stack import BIN, GIB, MIB, Refused, UnixConnection, run, wait_until


def plain(ovs, *args, check=True, **more):
    """`ovs ARGS` as a person runs it."""
    return run(BIN / "ovs", "--root", ovs.root, *args, check=check, **more)


def items(answer):
    return answer if isinstance(answer, list) else answer["items"]


def names(answer):
    return sorted(item["name"] for item in items(answer))


def refused(ovs, *args, code=1, says=""):
    with pytest.raises(Refused) as error:
        ovs.ovs(*args)
    assert error.value.code == code, error.value
    assert says in error.value.stderr + error.value.stdout, error.value
    assert "panicked" not in error.value.stderr


def test_a_fresh_ovsd_works_at_once(ovs):
    assert names(ovs.ovs("vpool", "list")) == ["default"]
    plain(ovs, "vdisk", "create", "default/x", "--size", "1GiB")
    assert ovs.show("x")["size_bytes"] == GIB


def test_status(ovs):
    status = ovs.ovs("status")
    assert isinstance(status, dict)
    text = plain(ovs, "status").stdout
    assert text.strip()


def test_vdisk_life(ovs):
    shown = ovs.create("v", "64MiB", "--description", "the first")
    assert shown["description"] == "the first" and shown["vpool"] == "default"
    assert shown["fuse_path"].endswith("/mnt/ovs/default/v.raw") and "reconnect-delay" in shown["nbd_uri"] + shown["qemu_filename"]
    ovs.create("v", "64MiB", "--description", "the first")  # the same again: done
    refused(ovs, "vdisk", "create", "default/v", "--size", "65MiB", says="exists")
    assert names(ovs.ovs("vdisk", "list")) == ["v"] == names(ovs.ovs("vdisk", "list", "default"))
    ovs.ovs("vdisk", "resize", "default/v", "--size", "128MiB")
    assert ovs.show("v")["size_bytes"] == 128 * MIB
    refused(ovs, "vdisk", "resize", "default/v", "--size", "64MiB", says="shrink")
    ovs.ovs("vdisk", "resize", "default/v", "--size", "64MiB", "--allow-shrink")
    assert "write" in json.dumps(ovs.ovs("vdisk", "stats", "default/v"))
    ovs.ovs("vdisk", "delete", "default/v")
    refused(ovs, "vdisk", "show", "default/v", says="v")


def test_trash(ovs):
    ovs.create("v", "8MiB")
    with Connection(ovs.nbd_socket, "default/v") as connection:
        connection.write(0, b"kept" * 1024)
    wait_until("nobody is attached", lambda: ovs.show("v")["attachment_count"] == 0)
    ovs.ovs("vdisk", "delete", "default/v")
    assert names(ovs.ovs("trash", "list")) == ["v"]
    ovs.ovs("trash", "restore", "default/v")
    with Connection(ovs.nbd_socket, "default/v") as connection:
        assert connection.read(0, 4) == b"kept"
    wait_until("nobody is attached", lambda: ovs.show("v")["attachment_count"] == 0)
    ovs.ovs("vdisk", "delete", "default/v")
    ovs.ovs("trash", "empty")
    assert items(ovs.ovs("trash", "list")) == []


def test_protection(ovs):
    ovs.create("v", "8MiB")
    ovs.ovs("vdisk", "protect", "default/v")
    refused(ovs, "vdisk", "delete", "default/v", says="protect")
    ovs.ovs("vdisk", "unprotect", "default/v")
    ovs.ovs("vdisk", "delete", "default/v")


def test_snapshots(ovs):
    ovs.create("v", "8MiB")

    def put(byte):
        with Connection(ovs.nbd_socket, "default/v") as connection:
            connection.write(0, byte * 4096)
        wait_until("nobody is attached", lambda: ovs.show("v")["attachment_count"] == 0)

    def get(export):
        with Connection(ovs.nbd_socket, f"default/{export}") as connection:
            return connection.read(0, 1)

    put(b"1")
    ovs.ovs("snapshot", "create", "default/v@one")
    put(b"2")
    ovs.ovs("snapshot", "create", "default/v@two")
    put(b"3")
    assert names(ovs.ovs("snapshot", "list", "default/v")) == ["one", "two"]
    refused(ovs, "snapshot", "create", "default/v@one@x", code=2)
    ovs.ovs("vdisk", "clone", "default/v@one", "default/c1")
    ovs.ovs("vdisk", "clone", "default/v", "default/c-now")
    assert (get("c1"), get("c-now"), get("v@two")) == (b"1", b"3", b"2")
    wait_until("nobody is attached", lambda: ovs.show("v")["attachment_count"] == 0)
    ovs.ovs("snapshot", "rollback", "default/v@one")
    assert get("v") == b"1"
    wait_until("nobody is attached", lambda: ovs.show("v")["attachment_count"] == 0)
    ovs.ovs("snapshot", "delete", "default/v@one")  # its clone goes on
    assert "one" not in names(ovs.ovs("snapshot", "list", "default/v"))
    assert get("c1") == b"1"
    refused(ovs, "snapshot", "rollback", "default/v@one", says="one")
    refused(ovs, "snapshot", "delete", "default/v@never", says="never")


def test_rollback_is_refused_while_somebody_writes(ovs):
    ovs.create("v", "8MiB")
    ovs.ovs("snapshot", "create", "default/v@s")
    with Connection(ovs.nbd_socket, "default/v") as connection:
        connection.write(0, b"x" * 512)
        for verb in (("snapshot", "rollback", "default/v@s"), ("vdisk", "delete", "default/v"), ("template", "set", "default/v"),
                     ("vdisk", "resize", "default/v", "--size", "4MiB", "--allow-shrink")):
            refused(ovs, *verb)
        connection.write(0, b"y" * 512)
    assert ovs.show("v")["size_bytes"] == 8 * MIB


def test_detach_force_fences(ovs):
    ovs.create("v", "8MiB")
    connection = Connection(ovs.nbd_socket, "default/v")
    connection.write(0, b"x" * 512)
    ovs.ovs("vdisk", "detach", "default/v", "--force")
    with pytest.raises(Exception):
        for _ in range(20):
            connection.write(0, b"y" * 512)
            time.sleep(0.05)
    with Connection(ovs.nbd_socket, "default/v") as again:
        assert again.read(0, 512) in (b"x" * 512, b"y" * 512)


def test_template(ovs):
    ovs.create("t", "8MiB")
    with Connection(ovs.nbd_socket, "default/t") as connection:
        connection.write(4096, b"t" * 4096)
    wait_until("nobody is attached", lambda: ovs.show("t")["attachment_count"] == 0)
    ovs.ovs("template", "set", "default/t")
    assert ovs.show("t")["is_template"]
    ovs.ovs("vdisk", "create", "default/c", "--template", "default/t")
    with Connection(ovs.nbd_socket, "default/c") as connection:
        assert connection.read(4096, 4096) == b"t" * 4096
        connection.write(4096, b"c" * 4096)
    refused(ovs, "vdisk", "delete", "default/t")  # it has a child
    with pytest.raises(Exception):
        Connection(ovs.nbd_socket, "default/t").write(0, b"x" * 512)


@pytest.mark.parametrize("form", ["raw", "qcow2", "pipe"])
def test_import_and_export(ovs, tmp_path, form):
    source, back = tmp_path / "source", tmp_path / "back"
    with open(source, "wb") as file:
        file.write(os.urandom(3 * MIB))
        file.seek(20 * MIB)
        file.write(os.urandom(MIB))
        file.truncate(32 * MIB)
    if form == "qcow2":
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", source, tmp_path / "q.qcow2")
        ovs.ovs("vdisk", "import", tmp_path / "q.qcow2", "default/v")
    elif form == "raw":
        ovs.ovs("vdisk", "import", source, "default/v")
    else:
        with open(source, "rb") as file:
            ovs.ovs("vdisk", "import", "-", "default/v", stdin=file)
    shown = ovs.show("v")
    assert shown["size_bytes"] == 32 * MIB and shown["allocated_bytes"] + shown["buffered_bytes"] < 12 * MIB, "not sparse"
    ovs.ovs("snapshot", "create", "default/v@s")
    if form == "pipe":
        with open(back, "wb") as file:
            done = subprocess.run([BIN / "ovs", "--root", ovs.root, "vdisk", "export", "default/v@s", "-"], stdout=file, timeout=60)
        assert done.returncode == 0
    else:
        ovs.ovs("vdisk", "export", "default/v@s", back)
        assert os.stat(back).st_blocks * 512 < 12 * MIB, "not sparse"
    run("cmp", source, back)


def test_import_refuses_foreign_files(ovs, tmp_path):
    """A qcow2 that names another file could read anything on this host."""
    run("qemu-img", "create", "-f", "raw", tmp_path / "base", "1M")
    run("qemu-img", "create", "-f", "qcow2", "-b", tmp_path / "base", "-F", "raw", tmp_path / "overlay")
    run("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw=on", tmp_path / "external", "1M")
    for image in ("overlay", "external"):
        refused(ovs, "vdisk", "import", tmp_path / image, "default/v")
    refused(ovs, "vdisk", "import", tmp_path / "nothere", "default/v")
    assert items(ovs.ovs("vdisk", "list")) == [], "a refused import left a vDisk"


def test_vpools_and_backends(ovs, tmp_path):
    ovs.ovs("backend", "create", "second", "--path", tmp_path / "second")
    ovs.ovs("vpool", "create", "fast", "--backend", "second")
    assert names(ovs.ovs("vpool", "list")) == ["default", "fast"]
    ovs.create("v", "8MiB", vpool="fast")
    with Connection(ovs.nbd_socket, "fast/v") as connection:
        connection.write(0, b"x" * 4096)
    refused(ovs, "vpool", "delete", "fast")
    wait_until("nobody is attached", lambda: ovs.show("v", "fast")["attachment_count"] == 0)
    ovs.rpc("DELETE", "/v1/vdisks/fast:v?purge=true")
    ovs.ovs("vpool", "delete", "fast")
    assert names(ovs.ovs("vpool", "list")) == ["default"]


def test_exit_codes(ovs):
    assert plain(ovs, "vdisk", "show", "default/none", check=False).returncode == 1
    for usage in (("nonsense",), ("vdisk",), ("vdisk", "create"), ("vdisk", "create", "default/x", "--size"), ("--nonsense",)):
        assert plain(ovs, *usage, check=False).returncode == 2, usage
    assert plain(ovs, "--help").returncode == 0
    assert plain(ovs, "--version").returncode == 0
    ovs.ovsd.stop()
    done = plain(ovs, "status", check=False, timeout=30)
    assert done.returncode == 1 and "ovsd" in done.stderr, done.stderr


def test_every_command_has_json_and_help(ovs):
    """`--output json` on every list and show."""
    ovs.create("v", "8MiB")
    for command in (("status",), ("vdisk", "list"), ("vdisk", "show", "default/v"), ("vdisk", "stats", "default/v"), ("vpool", "list"),
                    ("vpool", "show", "default"), ("backend", "list"), ("backend", "show", "default"), ("preset", "list"), ("snapshot", "list", "default/v"),
                    ("trash", "list"), ("host", "list"), ("task", "list")):
        json.dumps(ovs.ovs(*command))
        assert plain(ovs, *command).stdout is not None


def test_completion_and_man_pages(ovs, tmp_path):
    plain(ovs, "generate", "completion", tmp_path / "completion")
    plain(ovs, "generate", "man", tmp_path / "man")
    bash = next(path for path in (tmp_path / "completion").iterdir() if "fish" not in path.name and not path.name.startswith("_"))
    run("bash", "-n", bash)
    pages = list((tmp_path / "man").glob("*.1"))
    assert len(pages) > 10
    assert "vdisk" in run("man", "-l", "--warnings", next(page for page in pages if page.name == "ovs.1"), env={**os.environ, "MANWIDTH": "80"}).stdout


def test_metrics_events_and_openapi(ovs):
    status, document = ovs.rpc("GET", "/openapi.json")
    assert status == 200 and document["openapi"].startswith("3.") and "/v1/vdisks" in document["paths"]
    ovs.create("v", "8MiB")
    text = metrics(ovs)
    assert "# TYPE ovs" in text
    refused_lines = [line for line in text.splitlines() if line and not line.startswith("#") and len(line.rsplit(" ", 1)) != 2]
    assert refused_lines == []


def metrics(ovs):
    connection = UnixConnection(ovs.socket, 10)
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def listen(ovs, until, last=None):
    """Events as (id for the reader's position or None, id, name), up to one of a vDisk of this name."""
    connection = UnixConnection(ovs.socket, 20)
    connection.request("GET", "/v1/events", headers={"Last-Event-ID": last} if last else {})
    answer = connection.getresponse()
    assert answer.status == 200 and "text/event-stream" in answer.getheader("Content-Type")
    found, fields = [], {}
    while True:
        line = answer.readline().decode().rstrip("\n")
        if line:
            name, _, value = line.partition(":")
            fields[name] = value
        elif "data" in fields:  # an empty line ends an event, whatever the order of its fields
            event, position = json.loads(fields["data"]), fields.get("id")
            found.append((position and int(position), event["id"], event.get("name")))
            fields = {}
            if event.get("name") == until:
                connection.close()
                return found


def test_events_resume(ovs):
    """Last-Event-ID brings what was missed, in order, and no id before its time: clients take each for their position."""
    result = []
    thread = threading.Thread(target=lambda: result.extend(listen(ovs, "b")))
    thread.start()
    time.sleep(0.5)
    ovs.create("a", "8MiB")
    ovs.create("b", "8MiB")
    thread.join(30)
    assert [name for _, _, name in result if name] == ["a", "b"]
    ovs.create("c", "8MiB")
    seen_a = next(id_ for _, id_, name in result if name == "a")
    resumed = listen(ovs, "c", last=str(seen_a))
    assert [name for _, _, name in resumed if name] == ["b", "c"]
    positions = [position for position, _, _ in resumed if position]
    assert positions == sorted(positions) and len(positions) == 2, f"a reader cut off in the middle would miss events: {resumed}"
    status, problem = ovs.rpc("GET", "/v1/events", headers={"Last-Event-ID": "1"})
    assert status == 410 and problem["type"] == "urn:ovs:problem:gone"

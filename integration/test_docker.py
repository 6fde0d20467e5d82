"""Docker volumes with a real dockerd. Every row of what Docker is known to do to a volume driver is a case here.

Volumes have names of more than one letter: Docker takes `v:/data` for a path on drive V.
"""

import contextlib
import os
import re
import socket
import threading
import time

import pytest

from dockerd import IMAGE, Dockerd, Driver
from nbd_client import Connection
from stack import GIB, MIB, loops, run, wait_until


@pytest.fixture(scope="module")
def docker():
    dockerd = Dockerd()
    try:
        dockerd.start()
        dockerd.import_image()
        yield dockerd
    finally:
        dockerd.close()


@pytest.fixture
def driver(edge, docker):
    """ovsd, ovsd-edge and ovsd-docker, known to dockerd under a name of their own."""
    return Driver(edge, docker).start()


def mounts(driver):
    """Where the driver has mounted something: the mount table's lines of its loop devices."""
    devices = loops(driver.stack.root)
    with open("/proc/self/mounts") as table:
        return [line for line in table if line.split()[0] in devices]


def released(driver, volume=None):
    """Nothing mounted, no loop device left: of all volumes, or of one."""
    path = driver.stack.file(volume) if volume else driver.stack.root
    wait_until("the volume is unmounted", lambda: not loops(path), 20)


# --- the everyday

def test_data_outlives_its_container(driver):
    driver.run("v1", "echo kept >/data/file; sync")
    released(driver)
    assert driver.run("v1", "cat /data/file") == "kept"
    assert driver.volumes() == ["v1"]


def test_one_volume_in_two_containers(driver):
    one, two = driver.start_container("v1"), driver.start_container("v1")
    driver.exec(one, "echo hello >/data/x")
    assert driver.exec(two, "cat /data/x") == "hello"
    assert len(loops(driver.stack.root)) == 1, "two loop devices on one vDisk"
    driver.docker("rm", "-f", one)
    driver.exec(two, "echo more >>/data/x; cat /data/x")
    driver.docker("rm", "-f", two)
    released(driver)


def test_read_only_in_the_container(driver):
    driver.run("v1", "echo x >/data/x")
    done = driver.docker("run", "--rm", "--network", "none", f"--volume-driver={driver.name}", "-v", "v1:/data:ro", IMAGE,
                         "bash", "-c", "cat /data/x; echo y >/data/y", check=False)
    assert done.stdout.strip() == "x" and "Read-only" in done.stderr


def test_implicit_create_and_mount_syntax(driver):
    """No options at all mean the default size; --mount passes options."""
    driver.run("implicit", "df -B1 --output=size /data | tail -1")
    assert driver.stack.show("implicit")["size_bytes"] >= GIB
    size = driver.docker(
        "run", "--rm", "--network", "none", "--mount",
        f"type=volume,volume-driver={driver.name},source=m1,target=/d,volume-opt=size=400MiB,volume-opt=fstype=xfs",
        IMAGE, "bash", "-c", "df -B1 --output=size,fstype /d | tail -1").split()
    assert size[1] == "xfs" and 300 * MIB < int(size[0]) <= 400 * MIB


def test_anonymous_volume_goes_with_its_container(driver):
    driver.docker("run", "--rm", "--network", "none", f"--volume-driver={driver.name}", "-v", "/anonymous", IMAGE,
                  "bash", "-ec", "echo x >/anonymous/x")
    wait_until("it is gone", lambda: driver.volumes() == [], 10)
    released(driver)


def test_copy_up_and_owner(driver):
    """A new volume has no lost+found, takes the image's files and owner, as a local one does."""
    assert driver.run("empty", "ls -A /data") == ""
    owner = driver.docker("run", "--rm", "--network", "none", f"--volume-driver={driver.name}", "-v", "pg:/var/lib/postgresql",
                          "-u", "postgres", IMAGE, "bash", "-ec", "touch /var/lib/postgresql/x; stat -c %U:%a /var/lib/postgresql")
    assert owner.startswith("postgres:")
    names = driver.docker("run", "--rm", "--network", "none", f"--volume-driver={driver.name}", "-v", "files:/usr/share/postgresql/15/timezonesets",
                          IMAGE, "bash", "-c", "ls /usr/share/postgresql/15/timezonesets | wc -l")
    direct = driver.docker("run", "--rm", "--network", "none", IMAGE, "bash", "-c", "ls /usr/share/postgresql/15/timezonesets | wc -l")
    assert int(names) == int(direct) > 5


def test_options(driver):
    driver.create("opts", "size=100MiB", "uid=1234", "gid=2345", "mode=0750", "mount_opts=noatime", "label=team=db")
    assert driver.run("opts", "stat -c '%u %g %a' /data") == "1234 2345 750"
    container = driver.start_container("opts")
    (line,) = mounts(driver)
    assert "noatime" in line and "errors=remount-ro" in line
    driver.docker("rm", "-f", container)
    assert driver.stack.show("opts")["size_bytes"] == 100 * MIB
    assert driver.stack.show("opts")["labels"]["team"] == "db"


@pytest.mark.parametrize("option, says", [
    ("bogus=1", "bogus"), ("size=lots", "size"), ("size=-1", "size"), ("size=65TiB", "64"), ("size=1000", "size"), ("fstype=ntfs", "ext4"),
    ("uid=root", "uid"), ("mode=999", "mode"), ("mount_opts=exec,dev", "mount_opts"), ("mkfs_opts=-E root_owner=0:0; rm", "mkfs_opts"),
    ("from=../../etc", "from"), ("from=nothere", "nothere"), ("vpool=nothere", "nothere"), ("snapshot=x", "from"), ("template=nothere", "nothere"),
    ("mount_opts=$(reboot)", "mount_opts"),
])
def test_wrong_options_are_refused_by_name(driver, option, says):
    text = driver.docker.refused("volume", "create", "-d", driver.name, "-o", option, "bad")
    assert says in text, text
    assert driver.volumes() == []
    assert driver.stack.rpc("GET", "/v1/vdisks")[1]["items"] == []


def test_xfs(driver):
    assert "300" in driver.docker.refused("volume", "create", "-d", driver.name, "-o", "fstype=xfs", "-o", "size=100MiB", "xvol")
    driver.create("xvol", "fstype=xfs", "size=512MiB")
    driver.run("xvol", "for i in $(seq 200); do echo $i >/data/$i; done; sync")
    assert driver.run("xvol", "ls /data | wc -l; df --output=fstype /data | tail -1").split() == ["200", "xfs"]
    released(driver)


@pytest.mark.parametrize("name", ["../../etc/x", ".x", "bad/name", "..", "a b", "-x", "é", "x" * 200])
def test_hostile_names(driver, name):
    """Docker validates nothing for a foreign driver."""
    before = set(os.listdir("/etc"))
    done = driver.docker("volume", "create", "-d", driver.name, "--", name, check=False)
    assert done.returncode != 0, f"{name!r} was taken"
    assert driver.stack.rpc("GET", "/v1/vdisks")[1]["items"] == []
    assert set(os.listdir("/etc")) == before


def test_create_twice(driver):
    """Docker asks Get only, and says it is there; an identical create at the driver succeeds, a different one is refused."""
    driver.create("vol", "size=200MiB")
    driver.create("vol", "size=200MiB")
    assert driver.call("VolumeDriver.Create", {"Name": "vol", "Opts": {"size": "200MiB"}})[1].get("Err", "") == ""
    assert "size" in driver.call("VolumeDriver.Create", {"Name": "vol", "Opts": {"size": "300MiB"}})[1]["Err"]
    assert driver.stack.show("vol")["size_bytes"] == 200 * MIB


def test_inspect_and_list(driver):
    driver.create("vol", "size=300MiB")
    driver.run("vol", "dd if=/dev/urandom of=/data/x bs=1M count=20 2>/dev/null; sync")
    driver.stack.ovs("snapshot", "create", "default/vol@first")
    shown = driver.inspect("vol")
    text = str(shown["Status"]).lower()
    assert shown["Driver"] == driver.name and shown["Scope"] in ("local", "global")
    assert "first" in text or "snapshots" in text
    assert "default" in text and "300" in text, shown["Status"]
    assert re.match(r"\d{4}-\d\d-\d\dT", shown["CreatedAt"])
    driver.docker("volume", "ls")


def test_remove(driver):
    container = driver.start_container("vol")
    assert "in use" in driver.docker.refused("volume", "rm", "vol")
    driver.docker("rm", "-f", container)
    released(driver)
    driver.docker("volume", "rm", "vol")
    assert driver.volumes() == []
    trash = driver.stack.ovs("trash", "list")
    assert "vol" in [entry["name"] for entry in (trash if isinstance(trash, list) else trash["items"])]
    driver.run("vol", "test -z \"$(ls -A /data)\"")  # the same name again is a new volume


def test_remove_is_refused_while_somebody_else_writes(driver):
    """Docker knows its own containers only: an NBD client is in nobody's list but ovsd's."""
    driver.create("vol", "size=100MiB")
    with Connection(driver.stack.nbd_socket, "default/vol") as connection:
        connection.read(0, 512)
        assert driver.docker.refused("volume", "rm", "vol")
    wait_until("it can be removed", lambda: driver.docker("volume", "rm", "vol", check=False).returncode == 0, 20)


def test_protected_volume_is_not_removed(driver):
    driver.create("vol", "size=100MiB")
    driver.stack.ovs("vdisk", "protect", "default/vol")
    assert "protect" in driver.docker.refused("volume", "rm", "vol")
    driver.stack.ovs("vdisk", "unprotect", "default/vol")
    driver.docker("volume", "rm", "vol")


# --- docker cp, restarts

def test_docker_cp_while_running(driver, tmp_path):
    """cp sends Mount and Unmount with the ID of the running mount: counted, or the volume is gone from under the container."""
    container = driver.start_container("vol", "echo 1 >/data/out; sleep infinity")
    (tmp_path / "in").write_text("from the host\n")
    wait_until("it runs", lambda: driver.exec(container, "cat /data/out") == "1")
    for _ in range(3):
        driver.docker("cp", f"{container}:/data/out", tmp_path / "out")
        driver.docker("cp", tmp_path / "in", f"{container}:/data/in")
        assert len(loops(driver.stack.root)) == 1 and len(mounts(driver)) >= 1
    assert driver.exec(container, "cat /data/in; echo 2 >/data/out; sync; cat /data/out").split("\n") == ["from the host", "2"]
    driver.docker("stop", "-t", "1", container)
    released(driver)
    driver.docker("cp", f"{container}:/data/in", tmp_path / "again")  # stopped: mounts and unmounts by itself
    assert (tmp_path / "again").read_text() == "from the host\n"
    released(driver)
    fsck(driver, "vol")


def fsck(driver, volume):
    released(driver, volume)
    run("e2fsck", "-fn", driver.stack.file(volume))


def test_docker_restart(driver):
    container = driver.start_container("vol", "echo $(( $(cat /data/n 2>/dev/null || echo 0) + 1 )) >/data/n; sleep infinity")
    for count in range(2, 4):
        driver.docker("restart", "-t", "1", container)
        wait_until("restarted", lambda: driver.exec(container, "cat /data/n") == str(count), 20)
    driver.docker("rm", "-f", container)
    fsck(driver, "vol")


WRITER = "n=0; while true; do n=$((n+1)); echo $n >/data/n.new; sync /data/n.new; mv /data/n.new /data/n; sleep 0.05; done"


def counts_up(driver, container, timeout_s=30):
    first = int(driver.exec(container, "cat /data/n"))
    wait_until("the container goes on writing", lambda: int(driver.exec(container, "cat /data/n")) > first + 3, timeout_s)


def started_writer(driver):
    container = driver.start_container("vol", WRITER)
    wait_until("it writes", lambda: int(driver.exec(container, "cat /data/n")) > 3, 20)
    return container


def test_driver_killed_while_a_container_runs(driver):
    """The container does not notice; afterwards the driver knows its mount, so that stop unmounts and rm is refused before."""
    container = started_writer(driver)
    driver.program.kill9()
    counts_up(driver, container)
    driver.restart()
    counts_up(driver, container)
    assert len(loops(driver.stack.root)) == 1
    second = driver.start_container("vol")
    assert len(loops(driver.stack.root)) == 1, "a second loop device after the driver's restart"
    driver.docker("rm", "-f", second)
    counts_up(driver, container)
    driver.docker("rm", "-f", container)
    fsck(driver, "vol")


def test_driver_stopped_and_started(driver):
    container = started_writer(driver)
    assert driver.program.stop() == 0
    counts_up(driver, container)
    driver.restart()
    driver.docker("rm", "-f", container)
    fsck(driver, "vol")


def test_no_local_volume_when_the_driver_is_away(driver):
    """Never a silent fall back to a local volume."""
    driver.create("vol", "size=100MiB")
    driver.program.stop()
    driver.remove_socket()
    assert driver.docker.refused("run", "--rm", "--network", "none", f"--volume-driver={driver.name}", "-v", "new:/data", IMAGE, "true")
    assert "new" not in driver.docker("volume", "ls", "-q").split()
    driver.restart()
    driver.run("vol", "true")


def test_ovsd_killed_while_a_container_writes(driver):
    """A pause, and nothing else."""
    container = started_writer(driver)
    for _ in range(2):
        driver.stack.ovsd.kill9()
        time.sleep(0.5)
        driver.stack.restart()
        counts_up(driver, container)
    driver.docker("rm", "-f", container)
    fsck(driver, "vol")


@pytest.mark.timeout(180)
def test_edge_killed_costs_a_restart_of_the_container(driver):
    """What DESIGN says it may cost; the data is whole and nobody has to clean up by hand."""
    container = started_writer(driver)
    before = int(driver.exec(container, "cat /data/n"))
    driver.stack.edge.kill9()
    driver.stack.start_edge()

    def again():
        driver.docker("restart", "-t", "1", container, timeout=60)
        return int(driver.exec(container, "cat /data/n || echo 0")) > 0

    wait_until("the container runs again", again, 90, every_s=1)
    counts_up(driver, container)
    assert before > 0
    driver.docker("rm", "-f", container)
    fsck(driver, "vol")


def test_docker_run_while_ovsd_is_away(driver):
    """It waits for ovsd or says why not; when ovsd is back it works, and there is nothing to clean up."""
    driver.create("vol", "size=100MiB")
    driver.stack.ovsd.kill9()
    back = threading.Timer(5, driver.stack.restart)
    back.start()
    done = driver.run("vol", "true", check=False, timeout=100)
    back.join()
    assert done.returncode in (0, 125), done.stderr
    driver.stack.wait_ready()
    driver.run("vol", "echo x >/data/file")
    released(driver)


# --- dockerd dies

@contextlib.contextmanager
def own_dockerd(stack, *options):
    dockerd = Dockerd(*options)
    try:
        dockerd.start()
        dockerd.import_image()
        yield Driver(stack, dockerd).start()
    finally:
        with contextlib.suppress(Exception):
            stack.cleanups.close()
        dockerd.close()


@pytest.mark.timeout(180)
def test_dockerd_killed_with_live_restore(edge):
    """The same mount ID stays valid and is unmounted later."""
    with own_dockerd(edge, "--live-restore") as driver:
        container = started_writer(driver)
        driver.docker.program.kill9()
        time.sleep(1)
        driver.docker.restart()
        counts_up(driver, container)
        assert len(loops(driver.stack.root)) == 1
        driver.docker("stop", "-t", "1", container)
        driver.docker("rm", "-f", container)
        fsck(driver, "vol")


@pytest.mark.timeout(240)
def test_dockerd_killed_without_live_restore(edge):
    """The Unmount is never sent: the driver finds out by itself that nobody uses the volume."""
    with own_dockerd(edge) as driver:
        container = started_writer(driver)
        driver.docker.program.kill9()
        time.sleep(1)
        driver.docker.restart()
        driver.docker("rm", "-f", container)
        wait_until("the stale reference is dropped", lambda: not mounts(driver), 120, every_s=1)
        fsck(driver, "vol")
        driver.docker("volume", "rm", "vol")


# --- snapshots, clones, sizes

@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_resize_live(driver, fstype):
    """The mounted file system grows with its vDisk, the container running."""
    driver.create("vol", f"fstype={fstype}", "size=400MiB")
    container = driver.start_container("vol")
    driver.exec(container, "echo kept >/data/file")
    driver.stack.ovs("vdisk", "resize", "default/vol", "--size", "1GiB")
    if fstype == "ext4" and not has_capability(24):
        # The kernel asks for CAP_SYS_RESOURCE to grow a mounted ext4, which root lacks on this host: it grows at the next mount.
        time.sleep(3)
        driver.docker("restart", "-t", "1", container)

    def size():
        return int(driver.exec(container, "df -B1 --output=size /data | tail -1"))

    wait_until(f"{fstype} has grown", lambda: size() > 800 * MIB, 45, every_s=0.5)
    driver.exec(container, "dd if=/dev/zero of=/data/big bs=1M count=500 2>/dev/null; sync; grep -q kept /data/file")
    driver.docker("rm", "-f", container)
    if fstype == "ext4":
        fsck(driver, "vol")


def has_capability(number):
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    return bool(effective >> number & 1)


def test_clone_of_a_volume_in_use(driver):
    container = driver.start_container("vol", "echo one >/data/x; sync; sleep infinity")
    wait_until("written", lambda: driver.exec(container, "cat /data/x") == "one")
    driver.create("copy", "from=vol")
    driver.exec(container, "echo two >/data/x; sync")
    assert driver.run("copy", "cat /data/x; echo three >/data/x") == "one"
    assert driver.exec(container, "cat /data/x") == "two"
    assert driver.run("copy", "cat /data/x") == "three"
    driver.docker("rm", "-f", container)
    fsck(driver, "vol")
    fsck(driver, "copy")


def test_clone_of_a_snapshot(driver):
    driver.run("vol", "echo one >/data/x; sync")
    driver.stack.ovs("snapshot", "create", "default/vol@first")
    driver.run("vol", "echo two >/data/x; sync")
    driver.create("ca", "from=vol", "snapshot=first")
    driver.create("cb", "from=vol@first")
    driver.create("cc", "snapshot=default/vol@first", "size=30GiB")
    for volume in ("ca", "cb", "cc"):
        assert driver.run(volume, "cat /data/x") == "one"
    assert int(driver.run("cc", "df -B1 --output=size /data | tail -1")) > 25 * GIB, "a larger clone's file system did not grow"
    assert "nothere" in driver.docker.refused("volume", "create", "-d", driver.name, "-o", "from=vol", "-o", "snapshot=nothere", "cd")


def test_volume_from_a_template(driver):
    driver.run("golden", "echo image >/data/x; sync")
    released(driver)
    driver.stack.ovs("template", "set", "default/golden")
    driver.create("one", "template=golden")
    assert driver.run("one", "cat /data/x") == "image"


def test_snapshot_under_load_is_a_clean_file_system(driver):
    container = driver.start_container("vol", WRITER)
    for number in range(3):
        time.sleep(1)
        driver.stack.ovs("snapshot", "create", f"default/vol@s{number}")
    for number in range(3):
        driver.create(f"copy{number}", f"from=vol@s{number}")
        assert int(driver.run(f"copy{number}", "cat /data/n")) > 0
        run("e2fsck", "-fn", driver.stack.file(f"copy{number}"))
    driver.docker("rm", "-f", container)


# --- hostile JSON at the driver's socket

METHODS = ["VolumeDriver.Create", "VolumeDriver.Get", "VolumeDriver.Mount", "VolumeDriver.Unmount", "VolumeDriver.Path", "VolumeDriver.Remove"]


def test_hostile_json(driver):
    driver.create("good", "size=100MiB")
    deep = "[" * 50000 + "]" * 50000
    bodies = ["", "{", "null", "[]", "1", deep, '{"Name":' + deep + "}", '{"Name":null}', '{"Name":5}', b"\xff\xfe\x00", "x" * (20 << 20),
              '{"Name":"a/../b"}', '{"Name":"%s"}' % ("n" * 100000), '{"Name":"none","ID":"%s"}' % ("i" * 100000),
              '{"Name":"none","Opts":{"size":5}}', '{"Name":"none","Opts":[1,2]}', '{"Name":"\\u0000"}']
    for method in METHODS:
        for body in bodies:
            if '"ID"' in str(body) and not method.endswith("ount"):
                continue  # only Mount and Unmount have an ID: what is not looked at is not refused
            try:
                status, answer = driver.call(method, body)
            except (ConnectionError, ValueError) as hung_up:
                assert len(body) > 1 << 20, (method, body[:50], hung_up)
                continue
            assert status >= 400 or answer.get("Err"), (method, body[:60], status, answer)
    for method in ("VolumeDriver.Nothing", "", "../etc/passwd", "x" * 5000):
        try:
            status, answer = driver.call(method, {})
            assert status >= 400 or answer.get("Err")
        except (ConnectionError, ValueError):
            pass
    assert driver.program.alive()
    assert driver.volumes() == ["good"]
    driver.run("good", "true")


def test_unmount_after_a_failed_mount_takes_nothing_away(driver):
    """moby#37834: Docker sends Unmount even after a Mount that failed."""
    container = driver.start_container("vol")
    assert driver.call("VolumeDriver.Mount", {"Name": "nothere", "ID": "x"})[1]["Err"]
    driver.call("VolumeDriver.Unmount", {"Name": "nothere", "ID": "x"})
    driver.call("VolumeDriver.Unmount", {"Name": "vol", "ID": "an-id-that-never-mounted"})
    driver.exec(container, "echo x >/data/x")
    assert len(mounts(driver)) >= 1
    driver.docker("rm", "-f", container)
    released(driver)


def test_half_open_connections_at_the_driver(driver):
    opened = []
    for _ in range(500):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(2)
        try:
            connection.connect(str(driver.socket))
            connection.send(b"POST /VolumeDriver.Ma")
            opened.append(connection)
        except OSError:
            connection.close()
    assert len(opened) > 100
    driver.create("vol", "size=100MiB")
    driver.run("vol", "true")
    for connection in opened:
        connection.close()

"""The vPool as a folder of files (ovsd-edge): fsx, ext4 over loop, O_DIRECT of any alignment, and ovsd dying meanwhile."""

import ctypes
import errno
import mmap
import os
import subprocess
import sys
import threading
import time

import pytest

import nbd_client
from stack import CACHE, MIB, Refused, loop_device, mounted, run, wait_until

FSX = CACHE / "tools/bin/fsx"
PUNCH, ZERO, KEEP = 0x02, 0x10, 0x01


def fallocate(fd, mode, offset, length):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    if libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def direct_buffer(data):
    buffer = mmap.mmap(-1, max(len(data), 1) + 8192)
    buffer[:len(data)] = data
    return memoryview(buffer)


@pytest.mark.parametrize("seed", [1, 2])
def test_fsx_on_the_file(edge, seed):
    """Random reads, writes, mmap, truncates, punches against fsx's own model."""
    path = edge.file("fsx")
    path.touch()
    done = run(FSX, "-N", "4000", "-S", str(seed), path, check=False, timeout=110)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.timeout(180)
def test_fsx_on_ext4_over_loop(edge, tmp_path):
    edge.create("v", "256MiB")
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", edge.file("v"))
    with loop_device(edge.file("v")) as device:
        with mounted(device, tmp_path / "m", "-o", "discard,errors=remount-ro") as folder:
            run(FSX, "-N", "8000", "-S", "7", folder / "f", timeout=120)
            run("fstrim", folder)
        run("e2fsck", "-fn", device)


def test_size_is_byte_exact_and_files_are_vdisks(edge):
    path = edge.file("made-here")
    path.write_bytes(b"x" * 10001)
    shown = edge.show("made-here")
    assert shown["size_bytes"] == 10001 == path.stat().st_size
    edge.create("made-there", "3MiB")
    wait_until("the new vDisk is listed", lambda: edge.file("made-there").name in os.listdir(edge.mount()), 5)
    assert edge.file("made-there").stat().st_size == 3 * MIB
    assert edge.file("made-there").stat().st_blocks * 512 < MIB


def test_what_is_written_here_is_read_over_nbd(edge):
    edge.create("v", "8MiB")
    with open(edge.file("v"), "r+b") as file:
        file.seek(5000)
        file.write(b"through the file")
        file.flush()
        os.fsync(file.fileno())
    assert nbd_client.connect_again(edge.nbd_socket, "default/v").read(5000, 16) == b"through the file"


def test_direct_io_of_any_alignment(edge, chance):
    """FUSE asks for no alignment with O_DIRECT; bytes around the written ones stay."""
    size = 2 * MIB
    path = edge.file("v")
    edge.create("v", str(size))
    model = bytearray(size)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        for _ in range(300):
            offset = chance.randrange(size - 70000)
            length = chance.choice((1, 100, 511, 512, 4095, 4096, 65537))
            data = chance.randbytes(length)
            assert os.pwrite(fd, direct_buffer(data)[:length], offset) == length
            model[offset:offset + length] = data
            back = direct_buffer(bytes(length))
            assert os.preadv(fd, [back[:length]], offset) == length
            assert bytes(back[:length]) == data
        os.fsync(fd)
    finally:
        os.close(fd)
    assert nbd_client.connect_again(edge.nbd_socket, "default/v").read(0, size) == model


def test_fallocate_and_seek(edge):
    edge.create("v", "16MiB")
    fd = os.open(edge.file("v"), os.O_RDWR)
    try:
        os.pwrite(fd, b"a" * MIB, 0)
        os.pwrite(fd, b"b" * MIB, 8 * MIB)
        os.fsync(fd)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == MIB
        assert os.lseek(fd, MIB, os.SEEK_DATA) == 8 * MIB
        assert os.lseek(fd, 8 * MIB, os.SEEK_HOLE) == 9 * MIB
        with pytest.raises(OSError) as end:
            os.lseek(fd, 9 * MIB, os.SEEK_DATA)
        assert end.value.errno == errno.ENXIO
        fallocate(fd, PUNCH | KEEP, 4096, 8192)
        assert os.pread(fd, 16384, 0) == b"a" * 4096 + bytes(8192) + b"a" * 4096
        fallocate(fd, ZERO | KEEP, 8 * MIB + 100, 1000)
        assert os.pread(fd, 2000, 8 * MIB) == b"b" * 100 + bytes(1000) + b"b" * 900
        used = os.fstat(fd).st_blocks
        fallocate(fd, 0, 0, 16 * MIB)  # libvirt reserves this way: nothing is written
        assert os.fstat(fd).st_blocks - used < 2048
        fallocate(fd, 0, 0, 20 * MIB)
        assert os.fstat(fd).st_size == 20 * MIB
    finally:
        os.close(fd)


def test_truncate_down_discards_and_up_reads_zeros(edge):
    edge.create("v", "8MiB")
    path = edge.file("v")
    with open(path, "r+b", buffering=0) as file:
        file.write(b"x" * (2 * MIB))
        file.truncate(1000)
        file.truncate(3 * MIB)
        file.seek(0)
        assert file.read(2 * MIB) == b"x" * 1000 + bytes(2 * MIB - 1000)
        file.seek(5 * MIB)
        file.write(b"end")  # past the end: grows
    assert path.stat().st_size == 5 * MIB + 3 == edge.show("v")["size_bytes"]


def test_rename_and_unlink(edge):
    edge.create("v", "8MiB")
    uuid = edge.show("v")["uuid"]
    os.rename(edge.file("v"), edge.file("w"))
    assert edge.show("w")["uuid"] == uuid and not edge.file("v").exists()
    held = nbd_client.connect_again(edge.nbd_socket, "default/w")
    held.write(0, b"x" * 4096)
    with pytest.raises(OSError) as busy:
        os.unlink(edge.file("w"))
    assert busy.value.errno == errno.EBUSY, "unlinked while an NBD client writes"
    held.close()
    wait_until("it can be unlinked", lambda: os.unlink(edge.file("w")) or True, 10)
    with pytest.raises(Refused):
        edge.show("w")
    names = [item["name"] for item in as_list(edge.ovs("trash", "list"))]
    assert "w" in names, "an unlinked file is not in the trash"


def as_list(answer):
    return answer if isinstance(answer, list) else answer["items"]


def test_names_that_are_no_vdisks(edge):
    for name in ("no-suffix", ".hidden.raw", "-x.raw", "a b.raw", "é.raw", "x" * 200 + ".raw", ".raw"):
        with pytest.raises(OSError) as refused:
            (edge.mount() / name).touch()
        assert refused.value.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENAMETOOLONG, errno.EPERM, errno.EACCES), name
    with pytest.raises(OSError):
        os.mknod(edge.mount() / "fifo.raw", 0o600 | 0o010000)
    with pytest.raises(OSError):
        os.symlink("/etc/passwd", edge.mount() / "link.raw")
    assert edge.rpc("GET", "/v1/vdisks")[1]["items"] == []


def test_statfs_and_listing(edge):
    edge.create("v", "1GiB")
    stat = os.statvfs(edge.mount())
    assert stat.f_blocks * stat.f_frsize > 100 * MIB and stat.f_bavail > 0
    assert "v.raw" in os.listdir(edge.mount())


def test_qemu_on_the_file(edge, tmp_path):
    """QEMU's own way to open a disk image: O_DIRECT, native AIO, locks, discard."""
    edge.create("v", "64MiB")
    path = edge.file("v")
    run("qemu-io", "-f", "raw", "-t", "none", "-i", "native", "-c", "write -P 5 0 4M", "-c", "discard 1M 1M", "-c", "flush",
        "-c", "read -P 5 0 1M", "-c", "read -P 0 1M 1M", "-c", "read -P 5 2M 2M", path)
    run("qemu-img", "create", "-f", "qcow2", edge.file("q"), "128M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 6 100M 1M", edge.file("q"))
    run("qemu-img", "check", "-f", "qcow2", edge.file("q"))


# --- ovsd dies, the edge and its users only wait

def test_ovsd_killed_in_mid_write_is_a_pause(edge, chance):
    """fio on the file, verifying, never told that ovsd was killed three times under it."""
    edge.create("v", "128MiB")
    fio = subprocess.Popen(
        ["fio", "--name=j", "--ioengine=psync", "--direct=1", f"--filename={edge.file('v')}", "--rw=randwrite", "--bs=4k",
         "--size=128M", "--time_based", "--runtime=9", "--rate_iops=4000", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=512",
         "--numjobs=1", "--max_latency=60s"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(3):
            time.sleep(1 + chance.random())
            edge.ovsd.kill9()
            time.sleep(chance.random())
            edge.restart()
        output, _ = fio.communicate(timeout=90)
    finally:
        fio.kill()
        fio.wait()
    assert fio.returncode == 0, output[-3000:]
    assert edge.edge.alive()


@pytest.mark.timeout(180)
def test_ovsd_killed_under_ext4(edge, tmp_path, chance):
    """ext4 over loop over the file: files written while ovsd dies are right, fsck finds nothing."""
    edge.create("v", "512MiB")
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", edge.file("v"))
    with loop_device(edge.file("v")) as device:
        with mounted(device, tmp_path / "m", "-o", "errors=remount-ro") as folder:
            stop, written, problems = threading.Event(), {}, []

            def write_files():
                try:
                    number = 0
                    while not stop.is_set():
                        data = chance.randbytes(chance.randrange(1, 300000))
                        path = folder / f"f{number % 400}"
                        with open(path, "wb") as file:
                            file.write(data)
                            file.flush()
                            os.fsync(file.fileno())
                        written[path] = data
                        number += 1
                except Exception as error:  # noqa: BLE001: told below
                    problems.append(error)

            thread = threading.Thread(target=write_files)
            thread.start()
            for _ in range(3):
                time.sleep(1.5)
                edge.ovsd.kill9()
                edge.restart()
            time.sleep(1)
            stop.set()
            thread.join(60)
            assert not problems and not thread.is_alive(), problems
            assert len(written) > 5
            run("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
            for path, data in written.items():
                assert path.read_bytes() == data, path
        run("e2fsck", "-fn", device)


def test_ovsd_stopped_gracefully_is_a_pause_too(edge):
    """A write while there is no ovsd returns when there is one again. By a process of its own: this one starts ovsd."""
    edge.create("v", "16MiB")
    assert edge.ovsd.stop() == 0
    write = "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR); os.pwrite(fd, b'during', 0); os.fsync(fd)"
    writer = subprocess.Popen([sys.executable, "-c", write, str(edge.file("v"))])
    try:
        time.sleep(2)
        assert writer.poll() is None, "a write returned while there was no ovsd"
        edge.restart()
        assert writer.wait(30) == 0
    finally:
        writer.kill()
    assert edge.file("v").read_bytes()[:6] == b"during"


def test_a_reader_ends_while_ovsd_is_away(edge):
    """Closing what was only read waits for nobody. (Closing what was written does: close is a promise of ovsd-edge.)"""
    edge.create("v", "16MiB")
    hold = "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); os.pread(fd, 512, 0); print(flush=True); sys.stdin.read(); os.close(fd)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(edge.file("v"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        edge.ovsd.stop()
        holder.stdin.close()
        assert holder.wait(15) == 0
    finally:
        holder.kill()
        edge.restart()


def test_edge_can_be_started_before_ovsd(make_stack):
    stack = make_stack()
    stack.edge.start()
    time.sleep(1)
    assert stack.edge.alive(), stack.edge.tail()
    stack.start()
    wait_until("mounted", lambda: os.path.ismount(stack.mount()), 30)


def test_edge_killed_and_started_mounts_again(edge):
    """Its users get an error; after a start the path works again, without anybody's umount."""
    edge.create("v", "8MiB")
    with open(edge.file("v"), "r+b") as file:
        file.write(b"kept")
        file.flush()
        os.fsync(file.fileno())
    edge.edge.kill9()
    edge.start_edge()
    wait_until("the file is back", lambda: edge.file("v").read_bytes()[:4] == b"kept", 20)

"""A small guest with Debian's cloud kernel, for what the kernel of the test machine may lack (NBD devices).

QEMU without KVM: slow, and the same everywhere. The guest is an initramfs of busybox, the modules and programs asked for
with the libraries they load, and one script, whose console comes back as text. A disk of its own is at /dev/vda.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import pytest

from stack import CACHE, REPOSITORY, ROOTS, run

KERNEL = CACHE / "kernel"
DISK_BYTES = 4 << 30
MEMORY_MIB = 2048

# Ends with one line that says how it went, whatever the script did.
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmpfs /tmp
ln -sf /proc/self/fd /dev/fd
ip link set lo up; hostname guest
for module in $(cat /modules); do modprobe "$module" || echo "no module $module"; done
mkfs.ext4 -q -F /dev/vda && mkdir -p /data && mount -t ext4 /dev/vda /data
sh /case.sh
echo "GUEST: exit $?"
sync
poweroff -f
"""


def prepare():
    """Kernel and QEMU by packaging/setup.sh; without QEMU there is no guest, and the case is skipped with the reason."""
    if os.uname().machine != "x86_64":
        pytest.skip("the guest's kernel is for x86_64")
    done = run(REPOSITORY / "packaging/setup.sh", "vm", timeout=1200, check=False)
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip(f"QEMU cannot be installed: {(done.stderr or done.stdout).strip()[-500:]}")
    assert done.returncode == 0, f"packaging/setup.sh vm: {done.stdout}\n{done.stderr}"


def boot(script, programs, modules, timeout_s):
    """Runs the script in a fresh guest and returns its console; an AssertionError carries the console if it failed."""
    # On disk: the image has all our programs.
    with tempfile.TemporaryDirectory(prefix="ovst-guest-", dir=ROOTS) as work:
        work = pathlib.Path(work)
        image = build(work, script, programs, modules)
        disk = work / "disk.img"
        with open(disk, "wb") as file:
            file.truncate(DISK_BYTES)
        argv = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2",
            "-m", str(MEMORY_MIB), "-no-reboot", "-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio",
            "-kernel", str(next((KERNEL / "boot").glob("vmlinuz-*"))), "-initrd", str(image),
            "-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off rdinit=/init",
            "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe",
        ]
        log = work / "console"
        with open(log, "wb") as out:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            try:
                process.wait(timeout_s)
                ended = "ended"
            except subprocess.TimeoutExpired:
                ended = f"was killed after {timeout_s} s"
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait(30)
        console = log.read_text(errors="replace").replace("\r", "")
    assert "GUEST: exit 0\n" in console, f"the guest {ended}; its console:\n{console[-30000:]}"
    return console


def build(work, script, programs, modules):
    """The initramfs: every program by the path it is called by."""
    root = work / "root"
    for folder in ("bin", "sbin", "dev", "proc", "sys", "tmp", "run", "root", "etc", "lib64", "usr/bin", "usr/sbin"):
        (root / folder).mkdir(parents=True)
    copy(pathlib.Path(shutil.which("busybox")), root / "bin/busybox")
    for applet in run("busybox", "--list").stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    for program, path in programs.items():
        copy(pathlib.Path(program), root / path.lstrip("/"))
        listed = run("ldd", program, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            copy(pathlib.Path(library), root / library.lstrip("/"))
    add_modules(root, modules)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/mke2fs.conf").write_text(pathlib.Path("/etc/mke2fs.conf").read_text())
    (root / "modules").write_text(" ".join(modules))
    (root / "case.sh").write_text(script)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    image = work / "initramfs"
    run("sh", "-c", f"cd {root} && find . | cpio --quiet -o -H newc | gzip -1 > {image}", timeout=300)
    shutil.rmtree(root)
    return image


def add_modules(root, modules):
    version = next((KERNEL / "lib/modules").iterdir()).name
    if not (KERNEL / "lib/modules" / version / "modules.dep").exists():
        run("depmod", "-b", KERNEL, version, timeout=120)
    for module in modules:
        needed = run("modprobe", "-d", KERNEL, "-S", version, "--show-depends", module, check=False).stdout
        for path in re.findall(r"^insmod (\S+)", needed, re.M):
            copy(pathlib.Path(path), root / pathlib.Path(path).relative_to(KERNEL))
    target = root / "lib/modules" / version
    target.mkdir(parents=True, exist_ok=True)
    for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        copy(KERNEL / "lib/modules" / version / name, target / name)
    run("depmod", "-b", root, version, timeout=120)


def copy(source, target):
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)

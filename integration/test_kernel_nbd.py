"""Docker volumes on NBD devices of the kernel, in a guest: this machine's kernel may have none.

What is killed and what is expected then is in kernel_nbd.sh, which runs in the guest.
"""

import pathlib
import shutil

import pytest

import guest
from stack import BIN

SCRIPT = pathlib.Path(__file__).with_name("kernel_nbd.sh")
# On an idle machine it takes about a fifth.
GUEST_TIMEOUT_S = 900


@pytest.mark.timeout(GUEST_TIMEOUT_S + 1500)
def test_volumes_on_kernel_nbd_outlive_ovsd_and_ovsd_edge():
    guest.prepare()
    programs = {BIN / name: f"/usr/sbin/{name}" for name in ("ovsd", "ovsd-edge", "ovsd-docker", "ovs")}
    for name in ("mkfs.ext4", "e2fsck", "resize2fs", "curl"):
        programs[shutil.which(name)] = f"/usr/sbin/{name}"
    modules = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "fuse", "loop", "nbd"]
    console = guest.boot(SCRIPT.read_text(), programs, modules, GUEST_TIMEOUT_S)
    print(console)

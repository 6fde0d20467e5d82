"""Writes a vDisk's file as a client that lives on whatever happens to ovsd-edge: a process of its own, since its requests hang
in the kernel while nobody answers, and whoever holds such a file open cannot start programs meanwhile.

    file_writer.py FILE BLOCKS SEED

Direct writes of one block at a time, never an fsync; after an error it opens the file anew and writes the same again. It ends when
its standard input does, then reads everything back: what was acknowledged has to be there.
"""

import mmap
import os
import random
import select
import sys
import time

from nbd_client import BLOCK, block_of, version_of

PATIENCE_S = 60


class File:
    def __init__(self, path):
        self.path, self.fd, self.opened = path, None, 0
        self.buffer = mmap.mmap(-1, BLOCK)  # direct I/O wants it aligned

    def again(self, work):
        """Does it, over as many deaths of ovsd-edge as it takes."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self.fd is None:
                    self.fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
                    self.opened += 1
                return work()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise SystemExit(f"after {PATIENCE_S} s still: {error}") from error
                if self.fd is not None:
                    try:
                        os.close(self.fd)
                    except OSError:
                        pass
                    self.fd = None
                time.sleep(0.05)

    def write(self, number, version):
        self.buffer[:] = block_of(number, version)
        assert self.again(lambda: os.pwrite(self.fd, self.buffer, number * BLOCK)) == BLOCK

    def read(self, number):
        assert self.again(lambda: os.preadv(self.fd, [self.buffer], number * BLOCK)) == BLOCK
        return bytes(self.buffer)


def main():
    file, blocks, chance = File(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    acknowledged, version = {}, 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        number, version = chance.randrange(blocks), version + 1
        file.write(number, version)
        acknowledged[number] = version
    for number, version in sorted(acknowledged.items()):
        found = version_of(number, file.read(number))
        assert found == version, f"block {number}: acknowledged version {version}, read {found}"
    print(f"{version} writes, opened {file.opened} times")


if __name__ == "__main__":
    main()

"""ZeroFS, a peer of objects.py: a disk over NBD whose data are objects, here of a `file://` store.

Its program is used as it is, by its command line, its configuration file and its protocols. It has a cache of its own (1 GiB of memory, 4 GiB
of disk), everything else is as it comes; it always compresses and encrypts. Of a `file://` store nothing is synced, whatever is flushed: strace shows
`fsync` of files of its cache alone. So a flushed write of it need not survive a power cut.

A disk of it is a file in its folder `.nbd`. That is made over 9P, for which
this kernel need not have a client: a few requests of 9P2000.L (github.com/chaos/diod, protocol.md).
"""

import contextlib
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

import load
from stack import CACHE, MIB, run, wait_until

PROGRAM = CACHE / "tools/bin/zerofs"
DEVICE = "disk"

CONFIGURATION = """
[cache]
dir = "{folder}/cache"
disk_size_gb = 4.0
memory_size_gb = 1.0
[storage]
url = "file://{folder}/store"
encryption_password = "no secret: a benchmark"
[servers.ninep]
addresses = []
unix_socket = "{folder}/9p.sock"
[servers.nbd]
addresses = []
unix_socket = "{folder}/nbd.sock"
"""


class NineP:
    """As much of 9P2000.L as makes a file of some size. Numbers of requests, and their fields, are those of its protocol.md."""

    RLERROR, TLCREATE, TSETATTR, TVERSION, TATTACH, TWALK, TCLUNK = 7, 14, 26, 100, 104, 110, 120
    NOTAG, NOFID, SETATTR_SIZE, O_RDWR = 0xFFFF, 0xFFFFFFFF, 8, 2
    ROOT, FILE = 0, 1

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.ask(self.TVERSION, struct.pack("<I", 8192) + self.text("9P2000.L"), tag=self.NOTAG)
        self.ask(self.TATTACH, struct.pack("<II", self.ROOT, self.NOFID) + self.text("root") + self.text("") + struct.pack("<I", 0))

    @staticmethod
    def text(value):
        return struct.pack("<H", len(value)) + value.encode()

    def ask(self, kind, body, tag=1):
        self.socket.sendall(struct.pack("<IBH", 7 + len(body), kind, tag) + body)
        length, answer, _ = struct.unpack("<IBH", self.receive(7))
        body = self.receive(length - 7)
        assert answer == kind + 1, f"request {kind} of 9P: answer {answer}, " + (f"errno {struct.unpack('<I', body)[0]}" if answer == self.RLERROR else "")

    def receive(self, length):
        parts = b""
        while len(parts) < length:
            part = self.socket.recv(length - len(parts))
            assert part, "9P: hung up"
            parts += part
        return parts

    def make_file(self, folder, name, size):
        """A new file in a folder that is there, all of it a hole."""
        self.ask(self.TWALK, struct.pack("<IIH", self.ROOT, self.FILE, 1) + self.text(folder))
        self.ask(self.TLCREATE, struct.pack("<I", self.FILE) + self.text(name) + struct.pack("<III", self.O_RDWR, 0o600, 0))
        self.ask(self.TSETATTR, struct.pack("<IIIIIQQQQQ", self.FILE, self.SETATTR_SIZE, 0, 0, 0, size, 0, 0, 0, 0))
        self.ask(self.TCLUNK, struct.pack("<I", self.FILE))

    def close(self):
        self.socket.close()


class ZeroFs:
    """A store with one disk, of which a part is written. A fresh server for each run; store and cache live on."""

    def __init__(self, program, disk_bytes, written_bytes):
        self.program = program
        self.version = run(program, "--version").stdout.strip()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ovs-zerofs-", dir="/var/tmp"))
        try:
            for name in ("cache", "store"):
                (self.folder / name).mkdir()
            self.configuration = self.folder / "zerofs.toml"
            self.configuration.write_text(CONFIGURATION.format(folder=self.folder))
            self.configuration.chmod(0o600)
            with self.server():
                with contextlib.closing(NineP(self.folder / "9p.sock")) as files:
                    files.make_file(".nbd", DEVICE, disk_bytes)
                load.fill([self.place()], written_bytes, warm=True)
        except BaseException:
            self.close()
            raise

    def place(self):
        return load.nbd(f"nbd+unix:///{DEVICE}?socket={self.folder / 'nbd.sock'}")

    @contextlib.contextmanager
    def server(self):
        """Its pid."""
        sockets = [self.folder / "9p.sock", self.folder / "nbd.sock"]
        for path in sockets:
            path.unlink(missing_ok=True)
        with open(self.folder / "zerofs.log", "ab") as log:
            process = subprocess.Popen([self.program, "run", "-c", self.configuration], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True)
        try:
            def ready():
                assert process.poll() is None, f"zerofs died: {(self.folder / 'zerofs.log').read_text(errors='replace')[-2000:]}"
                return all(path.exists() for path in sockets)

            wait_until("zerofs listens", ready, 60)
            time.sleep(1)
            yield process.pid
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stored_mib(self):
        return sum(path.stat().st_size for path in (self.folder / "store").rglob("*") if path.is_file()) / MIB

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)

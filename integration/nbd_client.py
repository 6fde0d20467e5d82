"""A small NBD client that a test can bend: it pipelines, keeps count of what was acknowledged, sends nonsense on request,
comes back after its server died and sends again what was in flight, as QEMU and ovsd-edge do.

Fixed newstyle, simple replies only. Numbers are from the protocol's specification (doc/proto.md of NetworkBlockDevice/nbd).
"""

import socket
import struct
import time

INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_META = 1, 2, 3, 6, 7, 8, 10
REP_ACK, REP_INFO = 1, 3
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA = 1
EIO, EINVAL, ENOSPC, ENOTSUP, ESHUTDOWN, EPERM = 5, 22, 28, 95, 108, 1


class Failed(Exception):
    """The server answered a command with an error."""

    def __init__(self, errno):
        super().__init__(f"NBD error {errno}")
        self.errno = errno


class Gone(Exception):
    """The connection ended."""


class Connection:
    """One connection to one export."""

    def __init__(self, path, export="", timeout_s=30, negotiate=True):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout_s)
        self.sock.connect(str(path))
        self.handle = 0
        self.sent = {}
        if negotiate:
            self.greet()
            self.go(export)

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- bytes

    def exactly(self, count):
        parts = []
        while count:
            try:
                part = self.sock.recv(min(count, 1 << 20))
            except (ConnectionError, TimeoutError) as error:
                raise Gone(str(error)) from error
            if not part:
                raise Gone("end of stream")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def send(self, *parts):
        try:
            self.sock.sendall(b"".join(parts))
        except (ConnectionError, TimeoutError) as error:
            raise Gone(str(error)) from error

    # --- negotiation

    def greet(self):
        hello = self.exactly(18)
        assert hello[:16] == INIT_MAGIC + OPTION_MAGIC, hello
        assert struct.unpack(">H", hello[16:])[0] & 1, "not fixed newstyle"
        self.send(struct.pack(">I", 3))  # fixed newstyle, no zeroes

    def option(self, number, data=b""):
        """Sends an option and returns its replies as (type, data), up to the acknowledgement or the error."""
        self.send(OPTION_MAGIC, struct.pack(">II", number, len(data)), data)
        replies = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self.exactly(20))
            assert magic == OPTION_REPLY_MAGIC and option == number, (hex(magic), option)
            replies.append((kind, self.exactly(length)))
            if kind == REP_ACK or kind & 0x80000000:
                return replies

    def go(self, export):
        name = export.encode()
        replies = self.option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        kind, data = replies[-1]
        if kind != REP_ACK:
            raise Failed(kind)
        for kind, data in replies:
            if kind == REP_INFO and struct.unpack(">H", data[:2])[0] == 0:
                self.size, self.flags = struct.unpack(">QH", data[2:12])

    # --- commands, pipelined: submit, then reply

    def submit(self, command, offset=0, length=0, data=b"", flags=0, tag=None):
        self.handle += 1
        self.sent[self.handle] = (command, offset, length, tag)
        self.send(struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, self.handle, offset, length), data)
        return self.handle

    def reply(self):
        """The next reply in whatever order the server gives: (handle, errno, data, tag)."""
        magic, errno, handle = struct.unpack(">IIQ", self.exactly(16))
        assert magic == SIMPLE_REPLY_MAGIC, hex(magic)
        command, _, length, tag = self.sent.pop(handle)
        data = self.exactly(length) if command == READ and errno == 0 else b""
        return handle, errno, data, tag

    def call(self, *args, **more):
        assert not self.sent, "call() is for a connection with nothing in flight"
        self.submit(*args, **more)
        _, errno, data, _ = self.reply()
        if errno:
            raise Failed(errno)
        return data

    def read(self, offset, length):
        return self.call(READ, offset, length)

    def write(self, offset, data, flags=0):
        self.call(WRITE, offset, len(data), data, flags)

    def flush(self):
        self.call(FLUSH)

    def trim(self, offset, length):
        self.call(TRIM, offset, length)

    def zeroes(self, offset, length, flags=0):
        self.call(ZEROES, offset, length, flags=flags)


def connect_again(path, export="", timeout_s=60):
    """A connection as soon as the server is back."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return Connection(path, export)
        except (OSError, Gone, Failed) as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"no NBD connection within {timeout_s} s: {error!r}") from error
            time.sleep(0.05)


BLOCK = 4096


def block_of(number, version):
    """A 4 KiB block that says everywhere in it which block and which version it is."""
    return struct.pack(">QQ", number, version) * (BLOCK // 16)


def version_of(number, data):
    """The version of a block written by block_of, 0 if it is all zeros; raises if it is torn or another's."""
    if data == bytes(BLOCK):
        return 0
    found, version = struct.unpack(">QQ", data[:16])
    assert data == block_of(number, version), f"block {number}: torn or foreign: block {found} version {version} at its start"
    return version


class Writer:
    """Writes blocks of a vDisk at random without ever flushing, `depth` in flight, and remembers what was acknowledged.

    It lives on when the server dies: it connects again and sends again what was in flight, in the old order. At the end,
    `check` reads every block it ever wrote: the version must be the newest acknowledged one.
    """

    def __init__(self, path, export, blocks, chance, depth=16):
        self.path, self.export, self.blocks, self.chance, self.depth = path, export, blocks, chance, depth
        self.connection = connect_again(path, export)
        self.acknowledged = {}  # block -> version
        self.pending = {}  # block -> version, in the order of submission
        self.version = 0
        self.reconnects = 0
        self.retry_s = 60

    def submit_one(self):
        number = self.chance.randrange(self.blocks)
        if number in self.pending:
            return  # two writes in flight to one block have no defined order
        self.version += 1
        self.pending[number] = self.version
        self.connection.submit(WRITE, number * BLOCK, BLOCK, block_of(number, self.version), tag=number)

    def take_reply(self):
        _, errno, _, number = self.connection.reply()
        assert errno == 0, f"write of block {number}: NBD error {errno}"
        self.acknowledged[number] = self.pending.pop(number)

    def step(self):
        try:
            while len(self.pending) < self.depth:
                self.submit_one()
            self.take_reply()
        except Gone:
            self.resend()

    def resend(self):
        while True:
            self.connection.close()
            self.connection = connect_again(self.path, self.export, self.retry_s)
            self.reconnects += 1
            try:
                for number, version in self.pending.items():
                    self.connection.submit(WRITE, number * BLOCK, BLOCK, block_of(number, version), tag=number)
                return
            except Gone:
                continue

    def read_block(self, number):
        """One block over the writer's own connection, over as many lives of the server as it takes."""
        while True:
            try:
                return self.connection.read(number * BLOCK, BLOCK)
            except Gone:
                self.resend()
                self.drain()

    def run(self, seconds=None, writes=None):
        deadline = None if seconds is None else time.monotonic() + seconds
        done = 0
        while (deadline is None or time.monotonic() < deadline) and (writes is None or done < writes):
            self.step()
            done += 1

    def drain(self):
        while self.pending:
            try:
                self.take_reply()
            except Gone:
                self.resend()

    def check(self, connection=None):
        """Every block ever written, read back: never older than what was acknowledged."""
        for number, version in sorted(self.acknowledged.items()):
            found = version_of(number, connection.read(number * BLOCK, BLOCK) if connection else self.read_block(number))
            allowed = {version, self.pending.get(number, version)}
            assert found in allowed, f"block {number}: acknowledged version {version}, read {found}"

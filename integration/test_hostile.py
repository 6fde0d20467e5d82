"""Whatever arrives over a socket is hostile until parsed: it is refused, the program lives, and other clients never notice."""

import contextlib
import http.client
import json
import os
import random
import resource
import socket
import struct
import threading
import time

import pytest

import nbd_client
from nbd_client import OPTION_MAGIC, REQUEST_MAGIC, Connection, Gone, Writer
from stack import MIB, Refused, UnixConnection, wait_until


@contextlib.contextmanager
def neighbours(ovs):
    """Other clients meanwhile: one writes and reads over NBD without a pause of 5 s, one asks the RPC."""
    ovs.create("neighbour", "32MiB")
    writer = Writer(ovs.nbd_socket, "default/neighbour", 4096, random.Random(1), depth=4)
    stop = threading.Event()
    problems, slowest = [], [0.0]

    def guarded(work):
        def loop():
            try:
                while not stop.is_set():
                    start = time.monotonic()
                    work()
                    slowest[0] = max(slowest[0], time.monotonic() - start)
            except Exception as error:  # noqa: BLE001: told below
                problems.append(error)
        return loop

    def ask():
        assert ovs.rpc("GET", "/v1/vdisks?limit=10", timeout=10)[0] == 200
        time.sleep(0.05)

    threads = [threading.Thread(target=guarded(work)) for work in (writer.step, ask)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not problems, problems
    assert ovs.ovsd.alive(), "ovsd died"
    assert writer.reconnects == 0, "a neighbour was disconnected"
    assert slowest[0] < 5, f"a neighbour waited {slowest[0]:.1f} s"
    writer.drain()
    writer.check()


def raw(path, timeout_s=10):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout_s)
    connection.connect(str(path))
    return connection


def ends(connection, what):
    """The server hangs up (after whatever it has to say), instead of waiting or dying."""
    connection.settimeout(20)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        pytest.fail(f"{what}: still connected after 20 s")
    finally:
        connection.close()


def greeting(path):
    connection = raw(path)
    assert len(connection.recv(18, socket.MSG_WAITALL)) == 18
    return connection


def test_nbd_negotiation(ovs):
    ovs.create("v", "8MiB")
    option = lambda number, length, data=b"": OPTION_MAGIC + struct.pack(">II", number, length) + data  # noqa: E731
    flags = struct.pack(">I", 3)
    must_end = {
        "unknown client flags": struct.pack(">I", 0xFFFFFFFF),
        "bad option magic": flags + b"X" * 16,
        "option length of 4 GiB": flags + option(nbd_client.OPT_GO, 0xFFFFFFFF, b"x" * 100),
        "unknown export by the old option": flags + option(1, 11, b"no/such-one"),
    }
    with neighbours(ovs):
        for what, data in must_end.items():
            connection = greeting(ovs.nbd_socket)
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            ends(connection, what)
        # Each of these is answered with an error, and the negotiation goes on.
        connection = Connection(ovs.nbd_socket, negotiate=False)
        connection.greet()
        for what, number, data in (
            ("unknown option", 0x7777, b"abc"),
            ("GO, name length past the end", 7, struct.pack(">I", 0xFFFF) + b"x" * 10),
            ("GO, empty", 7, b""),
            ("GO, request count past the end", 7, struct.pack(">I", 1) + b"x" + struct.pack(">H", 60000)),
            ("GO, unknown export", 7, struct.pack(">I", 10) + b"default/no" + struct.pack(">H", 0)),
            ("GO, path", 7, struct.pack(">I", 16) + b"../../etc/passwd" + struct.pack(">H", 0)),
            ("GO, not UTF-8", 7, struct.pack(">I", 4) + b"\xff\xfe\x00\x80" + struct.pack(">H", 0)),
            ("SET_META_CONTEXT without structured replies", 10, struct.pack(">I", 9) + b"default/v" + struct.pack(">I", 1000)),
            ("STRUCTURED_REPLY with data", 8, b"x"),
        ):
            kind, _ = connection.option(number, data)[-1]
            assert kind & 0x80000000, f"{what}: answered {kind:#x}"
        connection.go("default/v")
        assert connection.read(0, 512) == bytes(512)
        connection.close()


def test_nbd_requests(ovs):
    ovs.create("v", "8MiB")
    request = lambda command, length, offset=0, flags=0, magic=REQUEST_MAGIC: struct.pack(  # noqa: E731
        ">IHHQQI", magic, flags, command, 1, offset, length)
    with neighbours(ovs):
        connection = Connection(ovs.nbd_socket, "default/v")
        with contextlib.suppress(Gone):
            connection.send(request(0, 512, magic=0x12345678))
        ends(connection.sock, "bad magic")
        # A write of 4 GiB: an error at once or after its payload, or a hang-up; never 4 GiB of memory.
        connection = Connection(ovs.nbd_socket, "default/v")
        before = resident_kib(ovs.ovsd.pid)
        with contextlib.suppress(Gone):
            connection.send(request(1, 0xFFFFFFFF), b"x" * (300 * MIB))
        assert resident_kib(ovs.ovsd.pid) - before < 128 << 10
        connection.close()
        for what, command, offset, length, flags in (
            ("unknown command", 99, 0, 0, 0), ("read of 4 GiB", 0, 0, 0xFFFFFFFF, 0),
            ("offset that overflows", 0, (1 << 64) - 1, 4096, 0), ("unknown flags", 0, 0, 512, 0xFF00),
            ("trim past the end", 4, 0, 0xFFFFFFFF, 0), ("block status without a context", 7, 0, 4096, 0),
        ):
            with Connection(ovs.nbd_socket, "default/v") as connection, pytest.raises(nbd_client.Failed):
                connection.call(command, offset, length, flags=flags)
            assert ovs.ovsd.alive(), what
        for cut in (1, 10, 27):  # hangs up within a header
            connection = Connection(ovs.nbd_socket, "default/v")
            connection.send(request(1, 4096)[:cut])
            connection.close()
        for cut in (0, 1, 4095):  # hangs up within the data of a write
            connection = Connection(ovs.nbd_socket, "default/v")
            connection.send(request(1, 4096), b"z" * cut)
            connection.close()
        for _ in range(30):  # hangs up in mid-reply
            connection = Connection(ovs.nbd_socket, "default/v")
            for _ in range(16):
                connection.submit(nbd_client.READ, 0, MIB)
            connection.exactly(1000)
            connection.close()
        with Connection(ovs.nbd_socket, "default/v") as connection:
            assert connection.read(0, 8192) == bytes(8192), "a truncated write was applied"


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_nbd_client_that_never_reads(ovs):
    """Its replies pile up at its own door only."""
    ovs.create("v", "8MiB")
    with neighbours(ovs):
        connection = Connection(ovs.nbd_socket, "default/v")
        connection.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for handle in range(5000):
                connection.sock.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, 0, handle, 0, MIB))
        time.sleep(3)
        resident = resident_kib(ovs.ovsd.pid)
        connection.close()
    assert resident < 1 << 20, f"ovsd holds {resident >> 10} MiB for one client that does not read"


def test_nbd_random_bytes(ovs, chance):
    ovs.create("v", "8MiB")
    with neighbours(ovs):
        for _ in range(100):
            connection = greeting(ovs.nbd_socket)
            with contextlib.suppress(ConnectionError):
                connection.sendall(chance.choice((b"", struct.pack(">I", 3), struct.pack(">I", 3) + OPTION_MAGIC)))
                connection.sendall(chance.randbytes(chance.randrange(1, 3000)))
            connection.close()


def open_many(paths, count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    opened = []
    for number in range(count):
        path = paths[number % len(paths)]
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()  # refused is an answer as well
            continue
        opened.append(connection)
    return opened


def test_500_half_open_connections(ovs):
    """500 on every door that say nothing, or half of something."""
    shown = ovs.create("v", "8MiB")
    with neighbours(ovs):
        opened = open_many([ovs.nbd_socket, ovs.socket, shown["nbd_socket"]], 1500)
        for number, connection in enumerate(opened):
            with contextlib.suppress(OSError):
                if number % 3 == 1:
                    connection.send(b"GET /v1/sta")
                elif number % 2:
                    connection.send(struct.pack(">I", 3) + b"IHAVE")
        assert len(opened) >= 500
        for _ in range(5):
            assert ovs.rpc("GET", "/v1/status", timeout=10)[0] == 200
            with Connection(ovs.nbd_socket, "default/v") as connection:
                connection.write(0, b"x" * 4096)
        for connection in opened:
            connection.close()
    wait_until("their files are closed", lambda: len(os.listdir(f"/proc/{ovs.ovsd.pid}/fd")) < 200, 60)


# --- RPC

def post(ovs, path, body, headers=None, method="POST"):
    """A body as it is; the status and the problem document."""
    connection = UnixConnection(ovs.socket, 20)
    with contextlib.suppress(BrokenPipeError):  # it may answer before it has read everything
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else {}


NAMES = ["", ".", "..", ".x", "-x", "a/b", "../../etc/x", "a b", "a\0b", "a\n", "é", "a@b", "a" * 129, "%2e%2e", "*", "$(id)", "`id`"]


def test_rpc_hostile_names(ovs):
    for name in NAMES:
        status, problem = post(ovs, "/v1/vdisks", json.dumps({"vpool": "default", "name": name, "size_bytes": MIB}))
        assert status in (400, 422), (name, status, problem)
        assert problem["type"] == "urn:ovs:problem:invalid", problem
        assert "name" in json.dumps(problem)
        if "\0" not in name:  # no argument of a program can hold one
            with pytest.raises(Refused) as refused:
                ovs.ovs("vdisk", "create", f"default/{name}", "--size", "1MiB")
            assert refused.value.code in (1, 2)
    assert not [d for d in (ovs.rpc("GET", "/v1/vdisks")[1] or {}).get("items", [])], "one of them was made"


def test_rpc_hostile_sizes(ovs):
    for size in (0, -1, 1 << 70, "1GiB; rm", 1.5, [], {}, (64 << 40) + 4096, True):
        status, problem = post(ovs, "/v1/vdisks", json.dumps({"vpool": "default", "name": "x", "size_bytes": size}))
        assert status in (400, 422), (size, status, problem)
        assert problem["type"].startswith("urn:ovs:problem:")
    for size in ("", "0", "-1", "1XB", "1e99", "99999999999999999999", "65TiB", "nan"):
        with pytest.raises(Refused) as refused:
            ovs.ovs("vdisk", "create", "default/x", f"--size={size}")
        assert refused.value.code in (1, 2), size


def test_rpc_hostile_bodies(ovs):
    deep = "[" * 100000 + "]" * 100000
    for body in ("", "{", "null", "[]", "1", '"x"', deep, '{"vpool":' + deep + "}", b"\xff\xfe", '{"vpool":"default"}',
                 json.dumps({"vpool": "default", "name": "x", "size_bytes": MIB, "sice": 1}),
                 '{"vpool":"default","name":"x","name":"y","size_bytes":4096}'):
        status, problem = post(ovs, "/v1/vdisks", body)
        assert status in (400, 409, 413, 415, 422), (body[:40], status)
        assert problem["type"].startswith("urn:ovs:problem:"), problem
    status, _ = post(ovs, "/v1/vdisks", "x" * (32 * MIB))
    assert status == 413, status
    for method, path in (("POST", "/v1/nothing"), ("GET", "/v1/vdisks/../../etc/passwd"), ("GET", "/v1/vdisks/%2e%2e%2f"), ("BREW", "/v1/status"),
                         ("GET", "/v1/vdisks/" + "x" * 5000), ("GET", "/v1/vdisks?limit=-1"), ("GET", "/v1/vdisks?cursor=%00"),
                         ("DELETE", "/v1/vpools/nope"), ("PATCH", "/v1/vdisks/default:nope")):
        status, problem = post(ovs, path, "{}", method=method)
        assert 400 <= status < 500, (method, path, status)
        assert problem.get("type", "").startswith("urn:ovs:problem:"), (method, path, problem)
    assert ovs.rpc("GET", "/v1/status")[0] == 200


def test_rpc_broken_http(ovs, chance):
    with neighbours(ovs):
        for data in (
            b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /v1/status HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
            b"GET /" + b"x" * 200000 + b" HTTP/1.1\r\n\r\n",
            b"POST /v1/vdisks HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"POST /v1/vdisks HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n{}",
            b"POST /v1/vdisks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF1\r\n",
            chance.randbytes(4000),
        ):
            connection = raw(ovs.socket)
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            ends(connection, data[:40])
        for _ in range(20):  # hangs up before and in mid-reply
            connection = raw(ovs.socket)
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.close()
        events = [raw(ovs.socket) for _ in range(50)]  # listeners that never read
        for connection in events:
            connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        for number in range(20):
            ovs.rpc("POST", "/v1/vdisks", {"vpool": "default", "name": f"e{number}", "size_bytes": MIB})
        for connection in events:
            connection.close()
    assert http.client.OK == ovs.rpc("GET", "/v1/status")[0]

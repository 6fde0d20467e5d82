"""The RPC against its own OpenAPI document: no 5xx, no answer that the document does not have, no valid request refused.

schemathesis makes requests out of the document, good ones and bad ones, single ones and sequences that follow its links.
`packaging/setup.sh test` installs it, at one version, into a folder of its own.
"""

import contextlib
import os
import pathlib
import re
import socket
import subprocess
import threading

import pytest

from stack import CACHE, unique

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = CACHE / "schemathesis" / "bin" / "st"
# With a fixed seed a run repeats; OVS_TEST_SEED tries another.
SEED = int(os.environ.get("OVS_TEST_SEED", "0")) or 20260101


def relay(path):
    """A TCP port of 127.0.0.1 whose connections end at a unix socket."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            # One end is gone: so is the other. Not closed: the other thread may be about to read, by a number that the next
            # connection would get.
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def accept():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(path))
            except OSError:
                client.close()
                continue
            for ends in ((client, server), (server, client)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def check(ovs, tmp_path, *options):
    listener = relay(ovs.socket)
    url = "http://127.0.0.1:%d" % listener.getsockname()[1]
    log = tmp_path / "schemathesis.log"
    argv = [PROGRAM, "--config-file", HERE / "schemathesis.toml", "run", f"{url}/openapi.json", "--url", url, "--seed", SEED,
            # A stream has no end.
            "--exclude-path", "/v1/events", "--request-timeout", "30", "--continue-on-failure", "--no-color", *options]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE),
                   "PYTHONDONTWRITEBYTECODE": "1", "OVS_TEST_ROOT": str(ovs.root)}
    print(f"seed: OVS_TEST_SEED={SEED}")
    with open(log, "wb") as out:
        code = subprocess.run([str(a) for a in argv], stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=tmp_path,
                              env=environment, timeout=300).returncode
    listener.close()
    text = log.read_text(errors="replace")
    assert code == 0, text[-20000:]
    # It has met the document and ovsd, and not passed them by.
    selected, total = map(int, re.search(r"(\d+) selected / (\d+) total", text).groups())
    assert selected == total - 1 >= 50 and "test cases" in text.lower(), text[-3000:]
    assert ovs.rpc("GET", "/v1/status")[0] == 200
    name = unique()
    ovs.create(name, "16MiB")


@pytest.fixture
def full(ovs):
    """An ovsd that has something of everything, so that not all answers are 404."""
    assert PROGRAM.exists(), f"{PROGRAM} is missing: packaging/setup.sh test installs it"
    ovs.create("web-1", "64MiB")
    ovs.ovs("snapshot", "create", "default/web-1@monday")
    return ovs


@pytest.mark.timeout(400)
def test_single_requests(full, tmp_path):
    check(full, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "20")


@pytest.mark.timeout(400)
def test_sequences_of_requests(full, tmp_path):
    check(full, tmp_path, "--phases", "stateful", "--max-examples", "50", "--mode", "positive")

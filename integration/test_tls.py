"""The doors over TCP with the real clients: libnbd's tools, QEMU's tools, curl, `ovs --host`; and those who are kept out."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import time

import pytest

from authority import Authority
from nbd_client import OPTION_MAGIC, Connection
from stack import BIN, MIB, SMALL_BUFFER, Program, Refused, run, wait_until
from test_hostile import ends, neighbours

STARTTLS, TLS_REQD = 5, 0x80000005


class Remote:
    """An ovsd whose doors over TCP are open on 127.0.0.1, and what its clients hold."""

    def __init__(self, make_stack, folder):
        self.servers, self.clients = Authority(folder, "servers"), Authority(folder, "clients")
        certificate, key = self.servers.issue("server")
        self.tokens, self.token = folder / "tokens", secrets.token_hex(32)
        self.tokens.touch(mode=0o600)
        self.tokens.write_text(f"# of this test\n{self.token}\n")
        tls = f"{{certificate: {certificate}, key: {key}, client_ca: {self.clients.ca}}}"
        self.ovs = make_stack(f"""{SMALL_BUFFER}
nbd:
  listen: ["127.0.0.1:0"]
  tls: {tls}
rpc:
  listen: ["127.0.0.1:0"]
  tls: {tls}
  tokens_file: {self.tokens}
""").start()
        self.folder = self.clients.client_folder(self.servers)

    def port(self, door):
        found = re.findall(rf'door="{door}" address=127\.0\.0\.1:(\d+)', self.ovs.ovsd.log.read_text())
        return int(found[-1])

    def uri(self, name, folder=None):
        uri = self.ovs.show(name)["nbd_tls_uri"]
        return f"{uri}?tls-certificates={folder or self.folder}"

    def connect(self):
        """A plain TCP connection to the NBD door."""
        connection = socket.create_connection(("127.0.0.1", self.port("NBD")), timeout=20)
        assert connection.recv(18, socket.MSG_WAITALL).startswith(b"NBDMAGIC")
        return connection

    def curl(self, path, *args):
        """Status and body; None and "" when TLS did not come about."""
        done = run("curl", "-sS", "--max-time", "20", "--cacert", self.servers.ca, "-w", "\n%{http_code}", *args,
                   f"https://127.0.0.1:{self.port('RPC')}{path}", check=False)
        body, _, status = done.stdout.rpartition("\n")
        return (int(status), body) if done.returncode == 0 else (None, done.stderr)

    def with_certificate(self):
        return ["--cert", self.folder / "client-cert.pem", "--key", self.folder / "client-key.pem"]

    def cli(self, *args, by="certificate", check=True):
        """`ovs --host`: nothing of this host's ovsd but its port."""
        how = {"certificate": [*self.with_certificate(), "--ca", self.servers.ca], "nothing": ["--ca", self.servers.ca],
               "token": ["--token-file", self.tokens.with_name("mine"), "--ca", self.servers.ca]}[by]
        argv = [BIN / "ovs", *args, "--host", f"https://127.0.0.1:{self.port('RPC')}", *how, "--output", "json"]
        done = run(*argv, timeout=120, check=False, env={**os.environ, "OVS_ROOT": "/nonexistent"})
        if check and done.returncode != 0:
            raise Refused(argv, done)
        return done


@pytest.fixture
def remote(make_stack, tmp_path):
    return Remote(make_stack, tmp_path)


def nbdsh(uri, *commands):
    """The words of an nbdsh, by the Python that Debian's python3-libnbd is for; its --uri takes no certificates."""
    connect = ["h.set_uri_allow_local_file(True)", f"h.connect_uri({uri!r})"]
    return ["/usr/bin/python3", "-m", "nbd", *(word for command in (*connect, *commands) for word in ("-c", command))]


def option(number, data=b""):
    return OPTION_MAGIC + struct.pack(">II", number, len(data)) + data


def test_the_real_clients_read_and_write(remote, tmp_path, chance):
    ovs = remote.ovs
    ovs.create("v", "64MiB")
    image, back = tmp_path / "image.raw", tmp_path / "back.raw"
    image.write_bytes(chance.randbytes(20 * MIB) + bytes(24 * MIB) + chance.randbytes(20 * MIB))
    uri = remote.uri("v")
    info = json.loads(run("nbdinfo", "--json", uri).stdout)
    assert info["TLS"] and info["structured"], info
    assert info["exports"][0]["export-size"] == 64 * MIB and info["exports"][0]["can_multi_conn"]
    assert "default/v" in run("nbdinfo", "--list", uri.replace("/default/v", "/")).stdout

    run("nbdcopy", "--flush", image, uri)
    run("nbdcopy", uri, back)
    assert back.read_bytes() == image.read_bytes(), "nbdcopy"
    run(*nbdsh(uri, "h.pwrite(b'x' * 5000, 4000)", "assert h.pread(5000, 4000) == b'x' * 5000", "h.zero(4096, 0)",
               "h.trim(4096, 8192)", "h.flush()", "assert h.pread(4096, 0) == bytes(4096)"))

    # QEMU has no word for TLS in a URI, and wants its own certificate to be of an authority that it trusts.
    port, folder = remote.port("NBD"), tmp_path / "qemu"
    shutil.copytree(remote.folder, folder)
    (folder / "ca-cert.pem").write_text(remote.servers.ca.read_text() + remote.clients.ca.read_text())
    tls = f"tls-creds-x509,id=tls,endpoint=client,dir={folder}"
    options = f"driver=nbd,host=127.0.0.1,port={port},export=default/v,tls-creds=tls"
    run("qemu-img", "convert", "--object", tls, "-n", "-f", "raw", image, "--target-image-opts", f"driver=raw,file.{options.replace(',', ',file.')}")
    run("qemu-img", "compare", "--object", tls, "--image-opts", f"driver=raw,file.filename={image}",
        f"driver=raw,file.{options.replace(',', ',file.')}")
    run("qemu-io", "--object", tls, "--image-opts", options, "-c", "write -P 7 1M 1M", "-c", "flush", "-c", "read -P 7 1M 1M")
    with Connection(ovs.nbd_socket, "default/v") as local:
        assert local.read(MIB, MIB) == b"\x07" * MIB
    ovs.ovs("snapshot", "create", "default/v@s")
    assert json.loads(run("nbdinfo", "--json", uri.replace("default/v", "default/v@s")).stdout)["exports"][0]["is_read_only"]


def test_who_does_not_belong_is_kept_out_of_nbd(remote, tmp_path):
    remote.ovs.create("v", "8MiB")
    others = Authority(tmp_path, "others")
    strangers = {
        "no certificate": remote.clients.client_folder(remote.servers, has_certificate=False),
        "another authority's certificate": others.client_folder(remote.servers),
        "another authority's server": remote.clients.client_folder(others),
    }
    for who, folder in strangers.items():
        done = run("nbdinfo", "--size", remote.uri("v", folder), check=False)
        assert done.returncode != 0 and not done.stdout, f"{who}: {done.stdout}"
    # Without TLS there is nothing, not even the list of names; and no client is let in by the oldest option.
    for uri in (f"nbd://127.0.0.1:{remote.port('NBD')}/default/v", f"nbd://127.0.0.1:{remote.port('NBD')}"):
        done = run("nbdinfo", *(() if uri.endswith("v") else ("--list",)), uri, check=False)
        assert done.returncode != 0 and "default" not in done.stdout, done.stdout
    connection = remote.connect()
    connection.sendall(struct.pack(">I", 3) + option(7, b"\0\0\0\x09default/v\0\0"))
    assert struct.unpack(">QIII", connection.recv(20, socket.MSG_WAITALL))[2] == TLS_REQD
    ends_after(connection, option(1, b"default/v"), "EXPORT_NAME")
    ends_after(remote.connect(), b"GET / HTTP/1.1\r\n\r\n", "HTTP")
    # What is put behind STARTTLS in the clear is no TLS.
    injected = option(STARTTLS) + option(7, b"\0\0\0\x09default/v\0\0")
    ends_after(remote.connect(), struct.pack(">I", 3) + injected, "injection")
    assert remote.ovs.ovs("attachment", "list") == []
    assert run("nbdinfo", "--size", remote.uri("v")).stdout.strip() == str(8 * MIB)


def ends_after(connection, data, what):
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)
    ends(connection, what)


@pytest.mark.timeout(300)
def test_500_half_open_connections_hurt_nobody(remote):
    """Half of them have not said a word, half stop in the middle of the TLS handshake; on both doors."""
    remote.ovs.create("v", "32MiB")
    uri = remote.uri("v")
    hello = struct.pack(">I", 3) + option(STARTTLS)
    with neighbours(remote.ovs), contextlib.ExitStack() as crowd:
        for index in range(500):
            for door in ("NBD", "RPC"):
                connection = crowd.enter_context(socket.create_connection(("127.0.0.1", remote.port(door)), timeout=20))
                if index % 2:
                    connection.sendall((hello if door == "NBD" else b"") + b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
            if index % 100 == 99:
                start = time.monotonic()
                assert run("nbdinfo", "--size", uri, timeout=20).stdout.strip() == str(32 * MIB)
                status, _ = remote.curl("/v1/status", *remote.with_certificate())
                assert status == 200 and time.monotonic() - start < 10
    run(*nbdsh(uri, "h.pwrite(b'x' * 4096, 0)"))


def test_each_write_over_tcp_is_on_stable_storage(remote):
    """A client elsewhere outlives our power: for each of its writes there is an fdatasync before the answer."""
    ovs = remote.ovs
    ovs.create("v", "32MiB")
    writes = "for i in range(50): h.pwrite(b'x' * 4096, i * 65536)"
    local = ovs.uri("v")
    with syncs(ovs.ovsd.pid) as count:
        run(*nbdsh(local, writes))
    locally = count()
    with syncs(ovs.ovsd.pid) as count:
        run(*nbdsh(remote.uri("v"), writes))
    remotely = count()
    print(f"50 writes: {locally} syncs by the unix socket, {remotely} over TCP")
    assert remotely >= 50 > locally + 25, (locally, remotely)
    sitting = subprocess.Popen(nbdsh(remote.uri("v"), "import sys; sys.stdin.read()"), stdin=subprocess.PIPE)
    try:
        found = wait_until("it is attached", lambda: ovs.ovs("attachment", "list"))
        assert [(one["write_through"], one["host"]) for one in found] == [(True, "127.0.0.1")], found
    finally:
        sitting.stdin.close()
        sitting.wait(20)


@contextlib.contextmanager
def syncs(pid):
    """Counts the syncs of a process while it is inside."""
    log = f"/var/tmp/ovs-syncs-{pid}-{time.monotonic_ns()}"
    tracer = subprocess.Popen(["strace", "-f", "-e", "trace=fdatasync,fsync,sync_file_range", "-o", log, "-p", str(pid)],
                              stderr=subprocess.PIPE)
    assert b"attached" in tracer.stderr.readline()
    time.sleep(0.3)
    try:
        yield lambda: counted
    finally:
        tracer.terminate()
        tracer.wait(20)
        tracer.stderr.close()
        with open(log) as lines:
            counted = sum("sync" in line and "resumed" not in line for line in lines)
        os.unlink(log)


def test_the_rpc_takes_a_certificate_or_a_token(remote, tmp_path):
    others = Authority(tmp_path, "others").client_folder(remote.servers)
    bearer = lambda token: ["-H", f"Authorization: Bearer {token}"]  # noqa: E731
    assert remote.curl("/v1/status", *remote.with_certificate())[0] == 200
    assert remote.curl("/v1/status", *bearer(remote.token))[0] == 200
    for how in ([], bearer("f" * 64), ["-u", f"x:{remote.token}"]):
        for path in ("/v1/status", "/openapi.json", "/metrics", "/v1/no"):
            status, body = remote.curl(path, *how)
            assert status == 401 and json.loads(body)["type"] == "urn:ovs:problem:unauthorized", (how, path, body)
    stranger = ["--cert", others / "client-cert.pem", "--key", others / "client-key.pem"]
    assert remote.curl("/v1/status", *stranger, *bearer(remote.token))[0] is None, "another authority's certificate"
    document = json.loads(remote.curl("/openapi.json", *bearer(remote.token))[1])
    assert set(document["components"]["securitySchemes"]) == {"mutualTls", "bearer"}
    # By HTTP in the clear there is nothing.
    plain = run("curl", "-sS", "--max-time", "20", f"http://127.0.0.1:{remote.port('RPC')}/v1/status", check=False)
    assert plain.returncode != 0 and not plain.stdout
    # A token that is taken out lets nobody in, at once; one that others can read is none.
    new = secrets.token_hex(32)
    remote.tokens.write_text(new)
    assert remote.curl("/v1/status", *bearer(remote.token))[0] == 401
    assert remote.curl("/v1/status", *bearer(new))[0] == 200
    remote.tokens.chmod(0o644)
    assert remote.curl("/v1/status", *bearer(new))[0] == 401
    remote.tokens.chmod(0o600)
    log = remote.ovs.ovsd.log.read_text()
    assert remote.token not in log and new not in log


def test_the_command_line_from_another_host(remote, tmp_path, chance):
    (tmp_path / "mine").write_text(remote.token)
    assert json.loads(remote.cli("vdisk", "create", "default/v", "--size", "16MiB").stdout)["name"] == "v"
    assert json.loads(remote.cli("vdisk", "show", "default/v", by="token").stdout)["nbd_tls_uri"].startswith("nbds://127.0.0.1:")
    image, back = tmp_path / "image.raw", tmp_path / "back.raw"
    image.write_bytes(chance.randbytes(5 * MIB) + bytes(6 * MIB) + chance.randbytes(5 * MIB))
    remote.cli("vdisk", "import", image, "default/w")
    remote.cli("vdisk", "export", "default/w", back)
    assert back.read_bytes() == image.read_bytes()
    refused = remote.cli("vdisk", "list", by="nothing", check=False)
    assert refused.returncode == 1 and json.loads(refused.stderr)["type"] == "urn:ovs:problem:unauthorized"
    refused = run(BIN / "ovs", "status", "--host", f"https://127.0.0.1:{remote.port('RPC')}", "--ca", remote.clients.ca, check=False)
    assert refused.returncode == 1 and "certificate" in refused.stderr, refused.stderr
    refused = run(BIN / "ovs", "status", "--host", "127.0.0.1", check=False)
    assert refused.returncode == 2 and "https://HOST:PORT" in refused.stderr, refused.stderr


def test_a_renewed_certificate_needs_no_restart(remote, tmp_path):
    remote.ovs.create("v", "8MiB")
    pid = remote.ovs.ovsd.pid
    next_ = Authority(tmp_path, "next")
    certificate, key = next_.issue("server")
    folder = remote.clients.client_folder(next_)
    sitting = subprocess.Popen(nbdsh(remote.uri("v"), "import sys; sys.stdin.read()", "h.pread(4096, 0)"), stdin=subprocess.PIPE)
    wait_until("it is attached", lambda: remote.ovs.ovs("attachment", "list"))
    shutil.copy(certificate, remote.servers.folder / "server-cert.pem")
    # Half a renewal: the old pair is still served.
    assert run("nbdinfo", "--size", remote.uri("v")).stdout.strip() == str(8 * MIB)
    shutil.copy(key, remote.servers.folder / "server-key.pem")
    assert run("nbdinfo", "--size", remote.uri("v", folder)).stdout.strip() == str(8 * MIB)
    assert run("nbdinfo", "--size", remote.uri("v"), check=False).returncode != 0, "the old authority"
    assert remote.curl("/v1/status", *remote.with_certificate(), "--cacert", next_.ca)[0] == 200
    sitting.stdin.close()
    assert sitting.wait(20) == 0, "a connection from before"
    assert remote.ovs.ovsd.pid == pid and remote.ovs.ovsd.alive()


def test_a_configuration_that_would_let_anybody_in_is_refused(make_stack, tmp_path):
    servers = Authority(tmp_path, "servers")
    certificate, key = servers.issue("server")
    loose = tmp_path / "loose"
    loose.write_text("0123456789abcdef0123456789abcdef\n")
    loose.chmod(0o644)
    tls = f"tls: {{certificate: {certificate}, key: {key}}}"
    ca = f"client_ca: {servers.ca}"
    listen = 'listen: ["127.0.0.1:0"]'
    cases = {
        f"nbd: {{{listen}}}": "nbd.tls is missing",
        f"nbd: {{{listen}, tls: off}}": "tls",
        f"nbd: {{{listen}, tls: {{certificate: {certificate}}}}}": "key",
        f"nbd: {{{listen}, tls: {{certificate: /absent, key: {key}, {ca}}}}}": "nbd.tls.certificate: /absent",
        f"nbd: {{{listen}, tls: {{certificate: {servers.ca}, key: {key}, {ca}}}}}": "nbd.tls.key",
        f"nbd: {{{listen}, {tls}}}": "nbd.tls.client_ca",
        f'nbd: {{listen: ["192.0.2.1:1"], {tls[:-1]}, {ca}}}}}': "nbd.listen: 192.0.2.1:1",
        f'nbd: {{listen: ["localhost"], {tls}}}': "listen",
        f"rpc: {{{listen}, {tls}}}": "rpc.tls.client_ca",
        f"rpc: {{{listen}, {tls}, tokens_file: {loose}}}": "mode is 0644",
        f"rpc: {{{listen}, {tls}, tokens_file: /absent}}": "rpc.tokens_file",
    }
    for text, expected in cases.items():
        stack = make_stack(f"{SMALL_BUFFER}{text}\n")
        done = run(BIN / "ovsd", "--root", stack.root, timeout=30, check=False)
        assert done.returncode == 1 and expected in done.stderr, (text, done.stderr)
        assert not (stack.state / "registry").exists(), "it was refused before anything was made"


def test_ovsd_stops_while_clients_are_connected(remote):
    remote.ovs.create("v", "8MiB")
    log = remote.ovs.logs / "sitting.log"
    sitting = Program("nbdsh", nbdsh(remote.uri("v"), "import time; time.sleep(60)"), log).start()
    wait_until("it is attached", lambda: remote.ovs.ovs("attachment", "list"))
    half_open = remote.connect()
    start = time.monotonic()
    assert remote.ovs.ovsd.stop() == 0 and time.monotonic() - start < 20
    ends(half_open, "a half-open connection")
    sitting.kill9()
    remote.ovs.restart()
    assert run("nbdinfo", "--size", remote.uri("v")).stdout.strip() == str(8 * MIB)

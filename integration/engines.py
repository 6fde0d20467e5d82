"""Object stores on loopback: Ceph (RADOS and its gateway, for S3 and Swift's API), OpenStack Swift, and Azurite, which speaks as Azure.

Each has a folder and ports of its own and is stopped by pid. One copy of everything and no authentication inside: enough to
be asked, killed, held and started again, and to keep what it acknowledged meanwhile.
"""

import base64
import dataclasses
import email.utils
import getpass
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import socket
import tempfile
import urllib.request
import uuid

from stack import CACHE, ROOTS, Program, run, wait_until

BUCKET = "ovs-test"


def free_ports(count):
    """Ports that nobody listened on a moment ago, below those that the kernel gives to clients."""
    found = []
    for port in range(21000 + uuid.uuid4().int % 8000, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def make_container(auth, user, key):
    """By Swift's API, which Ceph's gateway has too: there the container is also a bucket."""
    headers = {"X-Auth-User": user, "X-Auth-Key": key}
    with urllib.request.urlopen(urllib.request.Request(auth, headers=headers), timeout=10) as answer:
        url, token = answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"]
    put = urllib.request.Request(f"{url}/{BUCKET}", method="PUT", headers={"X-Auth-Token": token})
    with urllib.request.urlopen(put, timeout=30) as answer:
        assert answer.status in (201, 202)


@dataclasses.dataclass
class Door:
    """A store as core/remote/examples/conformance.rs takes it; a name and a secret for each store that is in it."""

    store: dict
    credentials: list

    def environment(self, secret=None):
        """With this secret instead of its own."""
        words = {**os.environ, "RUST_BACKTRACE": "0"}
        for number, (name, own) in enumerate(self.credentials):
            words |= {f"OVS_STORE_NAME_{number}": name, f"OVS_STORE_SECRET_{number}": secret or own}
        return words

    def argument(self):
        return json.dumps(self.store)


def folder(path):
    return Door({"dir": str(path)}, [])


def composite(policy, *doors):
    return Door({"policy": policy, "of": [door.store for door in doors]}, [pair for door in doors for pair in door.credentials])


class Engine:
    """What all have: a folder, programs, and doors."""

    def __init__(self, kind):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix=f"ovs-{kind}-", dir=ROOTS))
        self.programs = []

    def add(self, name, *argv, env=None):
        program = Program(name, argv, self.root / f"{name}.log", env)
        self.programs.append(program)
        return program

    def close(self):
        for program in reversed(self.programs):
            if program.alive():
                program.process.terminate()
        for program in reversed(self.programs):
            if program.process:
                try:
                    program.process.wait(5)
                except Exception:  # noqa: BLE001: whatever it waits for, nobody needs it
                    program.kill9()
        shutil.rmtree(self.root, ignore_errors=True)


class Ceph(Engine):
    """A monitor, an OSD on a sparse file, and the gateway; no manager, which I/O does not need."""

    def __init__(self):
        super().__init__("ceph")
        self.conf = self.root / "ceph.conf"
        self.mon_port, self.gateway_port, *osd = free_ports(22)
        for folder in ("mon", "osd", "rgw", "run", "log"):
            (self.root / folder).mkdir()
        # Without authentication the modes must be crc: the built-in default, secure, then waits for ever.
        modes = "\n".join(f"ms_{what}_mode = crc" for what in (
            "mon_client", "mon_service", "mon_cluster", "client", "cluster", "service"))
        self.conf.write_text(f"""
[global]
fsid = {uuid.uuid4()}
mon_host = v2:127.0.0.1:{self.mon_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_port_min = {osd[0]}
ms_bind_port_max = {osd[-1]}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
{modes}
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_crit = 1
mon_data_avail_warn = 2
run_dir = {self.root}/run
admin_socket = {self.root}/run/$name.asok
log_file = {self.root}/log/$name.log
crash_dir = {self.root}/log
keyring = {self.root}/keyring
[mon]
mon_data = {self.root}/mon
[osd]
osd_data = {self.root}/osd
osd_memory_target = 939524096
bluestore_block_size = 4294967296
osd_max_object_name_len = 256
osd_max_object_namespace_len = 64
osd_class_load_list = *
osd_class_default_list = *
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{self.gateway_port} tcp_nodelay=1
rgw_swift_account_in_url = false
rgw_enable_apis = s3, swift, swift_auth, admin
rgw_data = {self.root}/rgw
rgw_enable_quota_threads = false
rgw_lc_debug_interval = -1
""")
        (self.root / "keyring").touch()
        self.mon = self.add("mon", "ceph-mon", "-i", "a", "-f", "-c", self.conf)
        self.osd = self.add("osd", "ceph-osd", "-i", "0", "-f", "-c", self.conf)
        self.gateway = self.add("gateway", "radosgw", "-n", "client.rgw", "-f", "-c", self.conf)

    def ceph(self, *argv, timeout=30):
        return run("ceph", "--connect-timeout", "2", "-c", self.conf, *argv, timeout=timeout).stdout

    def answers(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.gateway_port}/", timeout=2) as answer:
            return answer.status == 200

    def start(self):
        fsid = self.conf.read_text().split("fsid = ")[1].split()[0]
        monmap = self.root / "monmap"
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{self.mon_port}]", monmap)
        run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "-c", self.conf)
        self.mon.start()
        wait_until("the monitor answers", lambda: self.ceph("mon", "stat"), 60)
        osd = str(uuid.uuid4())
        self.ceph("osd", "new", osd)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "-c", self.conf)
        self.osd.start()
        wait_until("the OSD is up", lambda: "1 up" in self.ceph("osd", "stat"), 60)
        self.gateway.start()
        wait_until("the gateway answers", self.answers, 120)
        admin = ("radosgw-admin", "-c", self.conf)
        run(*admin, "user", "create", "--uid=ovs", "--display-name=ovs", "--access-key=access", "--secret=secret-of-s3")
        run(*admin, "subuser", "create", "--uid=ovs", "--subuser=ovs:swift", "--access=full", "--key-type=swift",
            "--secret=secret-of-swift")
        make_container(f"http://127.0.0.1:{self.gateway_port}/auth/v1.0", "ovs:swift", "secret-of-swift")
        return self

    def s3(self, prefix):
        store = {"kind": "s3", "endpoint": f"http://127.0.0.1:{self.gateway_port}", "region": "us-east-1", "bucket": BUCKET}
        return Door({**store, "prefix": prefix}, [("access", "secret-of-s3")])

    def swift(self, prefix):
        store = {"kind": "swift", "auth": f"http://127.0.0.1:{self.gateway_port}/auth/v1.0", "container": BUCKET}
        return Door({**store, "prefix": prefix}, [("ovs:swift", "secret-of-swift")])


class Swift(Engine):
    """Proxy, account, container and object server on a folder; tokens in memcached."""

    def __init__(self):
        super().__init__("swift")
        self.proxy_port, memcached, *ports = free_ports(5)
        self.auth = f"http://127.0.0.1:{self.proxy_port}/auth/v1.0"
        etc, device = self.root / "etc", self.root / "dev" / "d1"
        etc.mkdir()
        device.mkdir(parents=True)
        common = (f"[DEFAULT]\nbind_ip = 127.0.0.1\nuser = {getpass.getuser()}\nswift_dir = {etc}\n"
                  f"devices = {device.parent}\nmount_check = false\nworkers = 0\ndisable_fallocate = true\n"
                  "fallocate_reserve = 0\nlog_level = WARNING\n")
        (etc / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = suffix\nswift_hash_path_prefix = prefix\n"
                                        "[storage-policy:0]\nname = Policy-0\ndefault = yes\n")
        pipeline = ["catch_errors", "gatekeeper", "healthcheck", "proxy-logging", "cache", "listing_formats", "tempauth",
                    "copy", "slo", "dlo", "proxy-server"]
        filters = {"cache": f"use = egg:swift#memcache\nmemcache_servers = 127.0.0.1:{memcached}",
                   "tempauth": "use = egg:swift#tempauth\nuser_ovs_swift = secret-of-swift .admin"}
        proxy = common + f"bind_port = {self.proxy_port}\n[pipeline:main]\npipeline = {' '.join(pipeline)}\n"
        proxy += "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
        # A server that has failed ten times is left out for a minute, and here there is no other.
        proxy += "error_suppression_interval = 1\n"
        for name in pipeline[:-1]:
            text = filters.get(name, f"use = egg:swift#{name.replace('-', '_')}")
            proxy += f"[filter:{name}]\n{text}\n"
        (etc / "proxy-server.conf").write_text(proxy)
        self.memcached = self.add("memcached", "memcached", "-l", "127.0.0.1", "-p", memcached, "-m", 32,
                                  "-u", getpass.getuser())
        self.servers = {}
        for name, port in zip(("account", "container", "object"), ports):
            (etc / f"{name}-server.conf").write_text(
                common + f"bind_port = {port}\n[pipeline:main]\npipeline = {name}-server\n"
                f"[app:{name}-server]\nuse = egg:swift#{name}\nrecon_cache_path = {self.root}\n"
                f"recon_lock_path = {self.root}\n")
            builder = f"{name}.builder"
            run("swift-ring-builder", builder, "create", 6, 1, 1, cwd=etc)
            run("swift-ring-builder", builder, "add", f"r1z1-127.0.0.1:{port}/d1", 1, cwd=etc)
            # 1 is a warning: that one device is few.
            assert run("swift-ring-builder", builder, "rebalance", cwd=etc, check=False).returncode in (0, 1)
            self.servers[name] = self.add_server(name)
        self.proxy = self.add_server("proxy")

    def add_server(self, name):
        return self.add(name, "/usr/bin/python3", f"/usr/bin/swift-{name}-server", self.root / f"etc/{name}-server.conf")

    def answers(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.proxy_port}/healthcheck", timeout=2) as answer:
            return answer.status == 200

    def start(self):
        for program in self.programs:
            program.start()
        wait_until("the proxy answers", self.answers, 60)
        wait_until("there is a container", lambda: make_container(self.auth, "ovs:swift", "secret-of-swift") or True, 30)
        return self

    def forget_tokens(self):
        """As after some hours: every token given so far is refused."""
        self.memcached.kill9()
        self.memcached.start()

    def swift(self, prefix):
        store = {"kind": "swift", "auth": self.auth, "container": BUCKET, "prefix": prefix}
        return Door(store, [("ovs:swift", "secret-of-swift")])

    def is_emptied(self):
        """As after a disk that was replaced: all that was stored is gone, and it answers for an empty container."""
        for program in self.programs:
            program.kill9()
        for path in (self.root / "dev" / "d1").iterdir():
            shutil.rmtree(path)
        return self.start()


class Azurite(Engine):
    """An emulator of Azure's blobs. What it acknowledged is in its memory for seconds, so that it is not to be killed."""

    # Everybody's: it has no other.
    ACCOUNT = "devstoreaccount1"
    KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self):
        super().__init__("azure")
        [self.port] = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{self.port}/{self.ACCOUNT}"
        (self.root / "data").mkdir()
        self.server = self.add("azurite", "node", CACHE / "azurite/node_modules/azurite/dist/src/blob/main.js", "--blobHost", "127.0.0.1",
                               "--blobPort", self.port, "--location", self.root / "data", "--silent", "--disableTelemetry",
                               "--skipApiVersionCheck")

    def answers(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=2):
            return True

    def start(self):
        self.server.start()
        wait_until("it answers", self.answers, 60)
        self.make_container()
        return self

    def make_container(self):
        """Put, as "Authorize with Shared Key" of the REST API's reference has it."""
        headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        words = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items()),
                 f"/{self.ACCOUNT}/{self.ACCOUNT}/{BUCKET}", "restype:container"]
        signed = hmac.new(base64.b64decode(self.KEY), "\n".join(words).encode(), hashlib.sha256).digest()
        headers |= {"Authorization": f"SharedKey {self.ACCOUNT}:{base64.b64encode(signed).decode()}", "Content-Length": "0"}
        put = urllib.request.Request(f"{self.endpoint}/{BUCKET}?restype=container", method="PUT", headers=headers)
        with urllib.request.urlopen(put, timeout=30) as answer:
            assert answer.status == 201

    def azure(self, prefix):
        store = {"kind": "azblob", "endpoint": self.endpoint, "container": BUCKET, "prefix": prefix}
        return Door(store, [(self.ACCOUNT, self.KEY)])

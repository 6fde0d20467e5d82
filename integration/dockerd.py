"""A private dockerd, and the volume driver under a name of its own, so that several run side by side."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from stack import BIN, CACHE, REPOSITORY, ROOTS, Program, UnixConnection, detach_all, run, unique, wait_until

# dockerd looks for volume drivers here and nowhere else; the socket's name is the driver's.
PLUGINS = pathlib.Path("/run/docker/plugins")
IMAGE = "ovs-test-postgres"


def image_tar():
    """The root file system of the test image: PostgreSQL, bash and coreutils from Debian's packages."""
    tar = CACHE / "postgres-image.tar"
    if not tar.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        run(REPOSITORY / "packaging/postgres-image.sh", tar, timeout=600)
    return tar


class Dockerd:
    """dockerd on folders of its own: no bridge, no firewall rules; containers have no network.

    containerd is a process beside it, as on a real host: so it and the containers live on when dockerd is killed.
    """

    def __init__(self, *options):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="ovsd-docker-", dir=ROOTS))
        self.host = f"unix://{self.root}/docker.sock"
        self.driver = unique("ovst")
        self.env = {"DOCKER_HOST": self.host}
        containerd = self.root / "containerd.sock"
        config = self.root / "containerd.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        self.containerd = Program("containerd", [
            "containerd", "--config", config, "--address", containerd, "--root", self.root / "containerd",
            "--state", self.root / "containerd-run"], self.root / "containerd.log")
        self.program = Program("dockerd", [
            "dockerd", "--data-root", self.root / "data", "--exec-root", self.root / "run", "--host", self.host,
            "--containerd", containerd, "--pidfile", self.root / "docker.pid", "--bridge=none", "--iptables=false",
            "--ip-forward=false", "--ip-masq=false", *options], self.root / "dockerd.log")

    def start(self):
        self.containerd.start()
        wait_until("containerd listens", (self.root / "containerd.sock").exists, 30)
        self.program.start()
        self.wait_ready()
        return self

    def wait_ready(self, timeout_s=90):
        wait_until("dockerd answers", lambda: self("version", timeout=10), timeout_s)

    def __call__(self, *args, check=True, timeout=120, **more):
        """`docker ARGS`; its output, or with check=False the finished process."""
        done = run("docker", *args, check=check, timeout=timeout, env={**os.environ, **self.env}, **more)
        return done.stdout.strip() if check else done

    def start_process(self, *args, **more):
        return subprocess.Popen(["docker", *map(str, args)], env={**os.environ, **self.env}, **more)

    def refused(self, *args, timeout=120):
        """`docker ARGS` must fail; what it says."""
        done = self(*args, check=False, timeout=timeout)
        assert done.returncode != 0, f"docker {' '.join(args)} was not refused: {done.stdout}"
        return done.stderr

    def import_image(self):
        self("import", "--change", "ENV PATH=/usr/lib/postgresql/15/bin:/usr/bin:/usr/sbin LANG=C.UTF-8 PGDATA=/data/db",
             "--change", 'CMD ["bash"]', image_tar(), IMAGE)

    def restart(self):
        self.program.start()
        self.wait_ready()

    def close(self):
        try:
            if self.program.alive():
                ids = self("ps", "-aq").split()
                if ids:
                    self("rm", "-f", *ids, check=False, timeout=60)
        finally:
            self.program.stop(60)
            self.containerd.stop(60)
            self.stop_shims()
            detach_all(self.root)
            shutil.rmtree(self.root, ignore_errors=True)

    def stop_shims(self):
        """What a killed dockerd left running: containerd's shims of this root, and the containers under them."""
        shims = set()
        for process in pathlib.Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    words = (process / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if words[0].endswith(b"containerd-shim-runc-v2") and str(self.root / "containerd.sock").encode() in words:
                    shims.add(int(process.name))
        for pid in shims:
            for child in children(pid) + [pid]:
                try:
                    os.kill(child, 9)
                except ProcessLookupError:
                    pass


def children(pid):
    """The processes below one, the deepest first."""
    try:
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    found = []
    for child in map(int, text.split()):
        found += children(child) + [child]
    return found


class Driver:
    """ovsd-docker for one ovs, under a name of its own."""

    def __init__(self, stack, dockerd):
        # One name per dockerd: it would ask every driver that it ever knew at each `volume ls`, 15 s for each that is gone.
        self.name = dockerd.driver
        self.stack, self.docker = stack, dockerd
        self.socket = PLUGINS / f"{self.name}.sock"
        PLUGINS.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.program = Program("ovsd-docker", [BIN / "ovsd-docker", "--root", stack.root, "--socket", self.socket,
                                               "--docker-socket", dockerd.root / "docker.sock", "--reconcile-interval", "5",
                                               # The same on every machine; NBD devices are test_kernel_nbd.py's.
                                               "--device", "loop"],
                               stack.logs / "ovsd-docker.log")
        stack.programs.append(self.program)
        stack.on_close(self.remove_socket)
        stack.on_close(self.remove_all)

    def start(self):
        self.program.start()
        self.wait_ready()
        return self

    def wait_ready(self):
        def ready():
            assert self.program.alive(), f"ovsd-docker is dead:\n{self.program.tail()}"
            return self.call("Plugin.Activate", {})[0] == 200

        wait_until("ovsd-docker answers", ready, 30)

    def restart(self):
        self.program.start()
        self.wait_ready()

    def call(self, method, body, timeout=60):
        """A call as dockerd makes it: status and JSON."""
        connection = UnixConnection(self.socket, timeout)
        try:
            text = body if isinstance(body, (str, bytes)) else json.dumps(body)
            connection.request("POST", f"/{method}", text, {"Content-Type": "application/vnd.docker.plugins.v1.2+json"})
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else {}
        finally:
            connection.close()

    def volumes(self):
        return self.docker("volume", "ls", "-q", "--filter", f"driver={self.name}").split()

    def remove_all(self):
        """Containers and volumes: the next test finds a dockerd as new."""
        ids = self.docker("ps", "-aq", check=False).stdout.split()
        if ids:
            self.docker("rm", "-f", *ids, check=False)
        volumes = self.docker("volume", "ls", "-q", check=False).stdout.split()
        if volumes:
            self.docker("volume", "rm", "-f", *volumes, check=False)

    def remove_socket(self):
        self.socket.unlink(missing_ok=True)

    # --- shorthand for containers

    def create(self, volume, *options):
        return self.docker("volume", "create", "-d", self.name, *[word for o in options for word in ("-o", o)], volume)

    def run_args(self, volume, at="/data", *more):
        return ("--network", "none", "--label", self.name, f"--volume-driver={self.name}", "-v", f"{volume}:{at}", *more)

    def run(self, volume, script, *more, check=True, timeout=120):
        """A container that runs a script with the volume at /data, and is gone afterwards."""
        return self.docker("run", "--rm", *self.run_args(volume, "/data", *more), IMAGE, "bash", "-ec", script,
                           check=check, timeout=timeout)

    def start_container(self, volume, script="sleep infinity", *more):
        """One that goes on; its name."""
        name = unique("c")
        self.docker("run", "-d", "--init", "--name", name, *self.run_args(volume, "/data", *more), IMAGE, "bash", "-ec", script)
        return name

    def exec(self, container, script, check=True, timeout=60):
        return self.docker("exec", container, "bash", "-ec", script, check=check, timeout=timeout)

    def inspect(self, volume):
        return json.loads(self.docker("volume", "inspect", volume))[0]

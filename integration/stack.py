"""A private ovs: ovsd, ovsd-edge and ovsd-docker on a root of their own, stopped by pid.

Programs are started from the folder OVS_BIN (target/release unless it says otherwise). Everything below one root, so that
many run side by side; every wait has an end; what a failed case leaves to read is its logs.
"""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(os.environ.get("OVS_BIN", REPOSITORY / "target" / "release"))
CACHE = pathlib.Path(os.environ.get("OVS_CACHE", "/var/cache/ovs-build"))
# On disk: /tmp may be a small tmpfs, which also has no O_DIRECT.
ROOTS = pathlib.Path("/var/tmp")
MIB = 1 << 20
GIB = 1 << 30


# The default write buffer of 2 GiB is filled with zeros at the first start: seconds that every case would wait for.
SMALL_BUFFER = """
buffer:
  size: 256MiB
  segment_size: 16MiB
"""


class Refused(Exception):
    """`ovs` ended with an exit code other than 0."""

    def __init__(self, argv, done):
        super().__init__(f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
        self.code = done.returncode
        self.stderr = done.stderr
        self.stdout = done.stdout


def run(*argv, timeout=60, check=True, **more):
    """Runs a command to its end; text in and out; its output is in the exception if it fails."""
    argv = [str(a) for a in argv]
    more.setdefault("stdin", subprocess.DEVNULL if "input" not in more else None)
    if "input" in more:
        more.pop("stdin")
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.PIPE)
    more.setdefault("text", True)
    done = subprocess.run(argv, timeout=timeout, **more)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def wait_until(what, ready, timeout_s=30, every_s=0.05):
    """Waits until ready() is true (an exception counts as not yet) and returns what it returned."""
    deadline = time.monotonic() + timeout_s
    last = None
    while True:
        try:
            value = ready()
            if value:
                return value
            last = f"last answer {value!r}"
        except Exception as error:  # noqa: BLE001: whatever is wrong now may be right soon
            last = f"{type(error).__name__}: {error}"
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s} s still not: {what} ({last})")
        time.sleep(every_s)


class Program:
    """One process of ours: started, killed and stopped by its own pid, its output in one log over all its lives."""

    def __init__(self, name, argv, log, env=None):
        self.name = name
        self.argv = [str(a) for a in argv]
        self.log = pathlib.Path(log)
        self.env = {**os.environ, "RUST_BACKTRACE": "1", **(env or {})}
        self.process = None

    def start(self):
        assert not self.alive(), f"{self.name} runs already"
        with open(self.log, "ab") as log:
            log.write(f"--- {time.strftime('%H:%M:%S')} start: {' '.join(self.argv)}\n".encode())
            log.flush()
            # A group of its own: a Ctrl-C at the tests must not reach a daemon before its clients are gone.
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env,
                                            start_new_session=True)
        return self

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill9(self):
        self.process.kill()
        self.process.wait(30)

    @contextlib.contextmanager
    def held(self):
        """Stopped in mid-work, as a host that swaps or a debugger holds it; goes on whatever happens inside."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def status(self, field):
        """A line of /proc/PID/status; sizes in bytes."""
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        value = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(f"{field}:"))
        return int(value.split()[0]) * 1024 if value.endswith(" kB") else value

    def stop(self, timeout_s=60):
        """SIGTERM, and its exit code; a program that does not stop in time is a failure (and killed)."""
        if not self.alive():
            return self.process.returncode if self.process else None
        self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)
            raise AssertionError(f"{self.name} did not stop within {timeout_s} s of SIGTERM") from None

    def tail(self, lines=30):
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("ovs", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Stack:
    """The programs of one root."""

    def __init__(self, root=None, config=None):
        self.root = pathlib.Path(root or tempfile.mkdtemp(prefix="ovst-", dir=ROOTS))
        self.logs = self.root / "log"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.configure(SMALL_BUFFER if config is None else config)
        self.ovsd = Program("ovsd", [BIN / "ovsd", "--root", self.root], self.logs / "ovsd.log")
        self.edge = Program("ovsd-edge", [BIN / "ovsd-edge", "--root", self.root], self.logs / "ovsd-edge.log")
        self.programs = [self.ovsd, self.edge]
        self.cleanups = contextlib.ExitStack()

    # --- paths, as DESIGN section 7 fixes them

    @property
    def socket(self):
        return self.root / "run/ovs/ovsd.sock"

    @property
    def nbd_socket(self):
        return self.root / "run/ovs/nbd.sock"

    @property
    def state(self):
        return self.root / "var/lib/ovs"

    def mount(self, vpool="default"):
        return self.root / "mnt/ovs" / vpool

    def file(self, name, vpool="default"):
        return self.mount(vpool) / f"{name}.raw"

    def configure(self, text):
        path = self.root / "etc/ovs/ovsd.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    # --- programs

    def start(self):
        self.ovsd.start()
        self.wait_ready()
        return self

    def wait_ready(self, timeout_s=60):
        def ready():
            assert self.ovsd.alive(), f"ovsd is dead:\n{self.ovsd.tail()}"
            return self.rpc("GET", "/v1/status", timeout=5)[0] == 200

        wait_until("ovsd answers /v1/status", ready, timeout_s)

    def start_edge(self):
        self.edge.start()

        def ready():
            assert self.edge.alive(), f"ovsd-edge is dead:\n{self.edge.tail()}"
            return is_mounted(self.mount())

        wait_until("ovsd-edge has mounted vPool default", ready, 30)
        return self

    def restart(self):
        self.ovsd.start()
        self.wait_ready()

    # --- clients

    def rpc(self, method, path, body=None, timeout=60, headers=None):
        """One request over the core socket: status, JSON body."""
        connection = UnixConnection(self.socket, timeout)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def ask(self, method, path, body=None, timeout=60):
        """The same for what has to succeed: its answer."""
        status, answer = self.rpc(method, path, body, timeout)
        assert status < 300, f"{method} {path}: {status} {answer}"
        return answer

    def ovs(self, *args, timeout=120, **more):
        """`ovs ARGS --output json`, parsed; Refused if it says no."""
        argv = [BIN / "ovs", "--root", self.root, *args, "--output", "json"]
        done = run(*argv, timeout=timeout, check=False, **more)
        if done.returncode != 0:
            raise Refused(argv[3:], done)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def create(self, name, size, *args, vpool="default"):
        self.ovs("vdisk", "create", f"{vpool}/{name}", "--size", size, *args)
        return self.show(name, vpool)

    def show(self, name, vpool="default"):
        return self.ovs("vdisk", "show", f"{vpool}/{name}")

    def uri(self, name, vpool="default"):
        """The vDisk on the common socket, for libnbd, QEMU and fio."""
        return f"nbd+unix:///{vpool}/{name}?socket={self.nbd_socket}"

    # --- the end

    def on_close(self, call, *args):
        """Something to do at the end, the last asked for first, before the programs stop."""
        self.cleanups.callback(call, *args)

    def close(self, expect_clean=True):
        """Stops everything and removes the root. Nothing may be left that another test could trip over."""
        problems = []
        try:
            self.cleanups.close()
        except Exception as error:  # noqa: BLE001: the rest has to be stopped all the same
            problems.append(f"clean-up: {error}")
        for program in reversed(self.programs):
            try:
                code = program.stop()
                if expect_clean and code not in (0, None, -signal.SIGKILL):
                    problems.append(f"{program.name} ended with {code} on SIGTERM")
            except AssertionError as error:
                problems.append(str(error))
        detach_all(self.root)
        self.keep_logs()
        shutil.rmtree(self.root, ignore_errors=True)
        for program in self.programs:
            kept = KEPT_LOGS / self.root.name / program.log.name
            text = kept.read_text(errors="replace") if kept.exists() else ""
            if "panicked at" in text:
                at = next(line for line in text.splitlines() if "panicked at" in line)
                problems.append(f"{program.name} panicked: {at}")
        if problems and expect_clean:
            raise AssertionError("; ".join(problems))

    def keep_logs(self):
        kept = KEPT_LOGS / self.root.name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.logs, kept)


class Strace:
    """strace on a program that runs, tampering with its system calls on some files; off again at the end, or with its death."""

    def __init__(self, program, inject, paths, log):
        self.program, self.log = program, pathlib.Path(log)
        self.argv = ["strace", "-f", "-y", "-qq", "-o", self.log, "-p", program.pid,
                     "-e", "trace=" + inject.partition(":")[0] + ",fsync,fdatasync,pwrite64,pwritev", "-e", f"inject={inject}"]
        self.argv += [word for path in paths for word in ("-P", path)]

    def __enter__(self):
        self.process = subprocess.Popen([str(word) for word in self.argv], stdin=subprocess.DEVNULL, start_new_session=True)
        wait_until("strace has every thread", self.has_all, 20)
        return self

    def has_all(self):
        assert self.process.poll() is None, f"strace ended with {self.process.returncode}"
        threads = pathlib.Path(f"/proc/{self.program.pid}/task").glob("*/status")
        return all(f"TracerPid:\t{self.process.pid}\n" in thread.read_text() for thread in threads)

    def calls(self):
        """What it saw so far, one line a call, in order."""
        return self.log.read_text(errors="replace").splitlines()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # it lets go of what it traces
        try:
            self.process.wait(20)
        finally:
            self.process.kill()


class NoCgroup(Exception):
    """No cgroup of that kind can be made here."""


class Cgroup:
    """A cgroup of our own below the one that we are in (v1, or v2 where that delegates), gone again at the end."""

    LIMITS = {"cpu": ("cpu.cfs_quota_us", "cpu.max"), "memory": ("memory.limit_in_bytes", "memory.max")}

    def __init__(self, controller):
        self.controller, self.path = controller, None
        self.above, self.is_v1 = self.find(controller)
        self.path = self.above / unique("ovst")
        try:
            if not self.is_v1:
                (self.above / "cgroup.subtree_control").write_text(f"+{controller}")
            self.path.mkdir()
            if not (self.path / self.LIMITS[controller][not self.is_v1]).exists():
                self.path.rmdir()
                raise NoCgroup(f"{self.above} has no {controller}")
        except OSError as error:
            raise NoCgroup(f"{self.above}: {error}") from error

    @staticmethod
    def find(controller):
        ours = [line.split(":", 2) for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
        for _, names, path in ours:
            for _, where, kind, options, *_ in mounts:
                if kind == "cgroup" and controller in names.split(",") and controller in options.split(","):
                    return pathlib.Path(f"{where}/{path}"), True
        for _, names, path in ours:
            for _, where, kind, *_ in mounts:
                if kind == "cgroup2" and names == "":
                    return pathlib.Path(f"{where}/{path}"), False
        raise NoCgroup("no cgroups are mounted")

    def limit(self, value):
        """Bytes of memory, or the share of one processor; None: none."""
        name = self.LIMITS[self.controller][not self.is_v1]
        if self.controller == "memory":
            text = str(value) if value else ("-1" if self.is_v1 else "max")
        else:
            quota = int(value * 100_000) if value else (-1 if self.is_v1 else "max")
            text = str(quota) if self.is_v1 else f"{quota} 100000"
        (self.path / name).write_text(text)

    def add(self, pid):
        (self.path / "cgroup.procs").write_text(str(pid))

    def peak(self):
        """Bytes of memory at most so far, page cache included."""
        return int((self.path / ("memory.max_usage_in_bytes" if self.is_v1 else "memory.peak")).read_text())

    def close(self):
        """Whoever is in it goes back to where we are."""
        def gone():
            for pid in (self.path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (self.above / "cgroup.procs").write_text(pid)
            self.path.rmdir()
            return True

        wait_until(f"{self.path} is empty", gone, 20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


KEPT_LOGS = ROOTS / "ovs-test-logs"


def is_mounted(path):
    path = os.fsencode(os.path.realpath(path)).decode()
    with open("/proc/self/mountinfo") as mounts:
        return any(line.split()[4].encode().decode("unicode_escape") == path for line in mounts)


def detach_all(root):
    """Whatever is still mounted below root, and the loop devices whose files are there."""
    for _ in range(3):
        with open("/proc/self/mountinfo") as mounts:
            ours = [line.split()[4] for line in mounts if line.split()[4].startswith(f"{root}/")]
        devices = loops(root)
        if not ours and not devices:
            return
        for path in reversed(ours):
            run("umount", path, check=False) if _ == 0 else run("umount", "-l", path, check=False)
        for device in devices:
            run("losetup", "-d", device, check=False)


def loops(path):
    """The loop devices over a file, or over the files below a folder."""
    done = run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE", check=False)
    pairs = (line.split(None, 1) for line in done.stdout.splitlines())
    return [pair[0] for pair in pairs if len(pair) == 2 and f"{pair[1]}/".startswith(f"{path}/")]


@contextlib.contextmanager
def loop_device(path, *options):
    """A loop device over a file, direct I/O."""
    device = run("losetup", "--find", "--show", "--direct-io=on", *options, path).stdout.strip()
    try:
        yield device
    finally:
        run("losetup", "-d", device, check=False)


@contextlib.contextmanager
def mounted(device, path, *options):
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    run("mount", *options, device, path)
    try:
        yield path
    finally:
        done = run("umount", path, check=False)
        if done.returncode != 0 and is_mounted(path):
            run("umount", "-l", path, check=False)


def unique(prefix="v"):
    return f"{prefix}-{uuid.uuid4().hex[:8]}"

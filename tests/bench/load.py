"""fio against one or many vDisks or files at once, with what it cost the processes that served it."""

import json
import os
import re
import resource
import subprocess
from collections import Counter
from typing import NamedTuple

from bench import cpu_seconds  # which finds the integration tests' modules
from stack import run

COMMON = ["--thread", "--randrepeat=0", "--norandommap", "--output-format=json+"]


class Load(NamedTuple):
    iops: list  # of each job
    mb_s: float
    latency_us: Counter  # how many operations took how long
    operations: int
    cpu_us: dict  # per operation: of each process, of fio, and of all else on the machine

    @property
    def total(self):
        return sum(self.iops)

    def percentile(self, share):
        """The latency in µs that this share of all operations kept below."""
        return percentile(self.latency_us, share)


def percentile(counts, share):
    wanted = share * sum(counts.values())
    for value in sorted(counts):
        wanted -= counts[value]
        if wanted <= 0:
            return value
    return 0


def busy_seconds():
    """Of all processors, since the start of the machine."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq = map(int, stat.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def fio(places, options, size, seconds=None, servers=None, timeout=300, env=None):
    """One job per place (fio's options for it). `servers`: {name: pid}, whose CPU time counts."""
    servers = servers or {}
    command = ["fio", *COMMON, f"--size={size}", *options]
    if seconds:
        command += ["--time_based", f"--runtime={seconds}"]
    for number, place in enumerate(places):
        command += [f"--name=job{number}", *place]
    before = {name: cpu_seconds(pid) for name, pid in servers.items()}
    own, busy = resource.getrusage(resource.RUSAGE_CHILDREN), busy_seconds()
    done = subprocess.run([str(word) for word in command], check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=(seconds or 0) + timeout, env={**os.environ, **(env or {})})
    assert done.returncode == 0, done.stdout[-3000:]
    busy, now = busy_seconds() - busy, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = {name: cpu_seconds(pid) - before[name] for name, pid in servers.items()}
    cpu["fio"] = now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime
    cpu["all else"] = max(0.0, busy - sum(cpu.values()))
    return result(json.loads(done.stdout[done.stdout.index("{"):])["jobs"], cpu)


def result(jobs, cpu):
    iops, bytes_s, latency, operations = [], 0, Counter(), 0
    for job in jobs:
        assert job["error"] == 0, job
        side = max(job["read"], job["write"], key=lambda side: side["total_ios"])
        took = max(job["job_runtime"], 1) / 1000  # with its last flush
        iops.append(side["total_ios"] / took)
        bytes_s += side["io_bytes"] / took
        operations += side["total_ios"]
        for ns, count in side["clat_ns"].get("bins", {}).items():
            latency[int(ns) / 1000] += count
    return Load(iops, bytes_s / 1e6, latency, operations, {name: used * 1e6 / max(1, operations) for name, used in cpu.items()})


def nbd(uri):
    return ["--ioengine=nbd", f"--uri={uri}"]


def fill(places, size, *options, env=None, warm=False):
    """Each of the places, from its beginning; 1 MiB at a time unless `options` says otherwise. `warm`: read once as well, so that it is in
    the caches of those who have any, also where large writes go past them."""
    fio(places, ["--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1", *options], size, timeout=580, env=env)
    if warm:
        fio(places, ["--rw=read", "--bs=1M", "--iodepth=4"], size, timeout=580, env=env)


def metrics(stack):
    return run("curl", "-s", "--max-time", "20", "--unix-socket", stack.socket, "http://ovs/metrics").stdout


def metric(stack, name):
    return float(re.search(rf"^{name} (\S+)$", metrics(stack), re.MULTILINE)[1])


def buffered(stack):
    """What all vDisks together have in the write buffer only."""
    return sum(float(value) for value in re.findall(r"^ovs_vdisk_buffered_bytes\{[^}]*\} (\S+)$", metrics(stack), re.MULTILINE))

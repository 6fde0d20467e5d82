#!/usr/bin/python3
"""ovs beside disks that are kept as objects: RBD of a Ceph, and ZeroFS, on the same device. It runs with those that are here.

RBD: the smallest and quickest cluster there is: one monitor, one OSD (BlueStore in a file), one copy, no signatures, all on loopback. It is
started once and lives through all runs; fio's own rbd engine goes to it without NBD between. Without its cache (`rbd_cache = false`) RBD
acknowledges a write when it is on stable storage; with it, as it comes, when it is in the memory of the client's process, and after a kill of that
it is lost. An acknowledged write of ovs survives that, not a power cut, unless it was flushed. An image has one writer, so there is no row with
16 connections. Debian has it: packaging/setup.sh ceph.

ZeroFS (tests/bench/zerofs.py): a store of files on the file system that the backend of ovs is on, NBD, a fresh server for each run. It has no
package in Debian, and `make` does not install it (it is under the AGPL). --zerofs says where its program is, if not where this puts it
(9 minutes of processor time, 14 at idle priority on 2 busy cores; the packages of `packaging/setup.sh build` are enough):

    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo install zerofs --version 0.19.1 --locked --root /var/cache/ovs-build/tools

Of both the disk was written before: their best case. ovs is as in bench.py: NBD, a thin vDisk for writes, a fresh ovsd for each run.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import uuid

import load
import zerofs
from bench import DISK, WORKING_SET, Ovs
from bench import ROWS as ALL_ROWS
from report import Goal, Page, alternate, goals, ratios, spread, table
from stack import GIB, MIB, ROOTS, run, wait_until

TARGETS = {"ovs": "ovs", "rbd": "RBD, no cache", "rbd-cache": "RBD, its cache", "zerofs": "ZeroFS, file:// store"}
CEPH_PROGRAMS = ("monmaptool", "ceph-mon", "ceph-osd", "ceph", "rbd")
# Of what each of those reaches: must, aim.
LIMITS = {"write-4k-flush": (5, 10), "write-4k-flush32": (5, 10), "write-4k-16conn": (5, 10), "write-4k-qd32": (5, 100), "read-4k-qd1": (5, 20),
          "read-4k-qd32": (5, 20), "write-1m": (5, None), "read-1m": (5, 20)}

CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_port_min = {first}
ms_bind_port_max = {last}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_mon_service_mode = crc
ms_mon_cluster_mode = crc
ms_client_mode = crc
ms_service_mode = crc
ms_cluster_mode = crc
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 2
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
pid_file =
crash_dir = {folder}
keyring = {folder}/keyring
[mon]
mon_data = {folder}/mon
[osd]
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = {block}
[client]
rbd_cache = {cache}
"""


class Ceph:
    """A cluster of one host, with an image of which WORKING_SET is written. By pid, on loopback, in a folder of its own."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ovs-ceph-", dir="/var/tmp"))
        self.programs = {}
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self):
        folder, fsid, port = self.folder, uuid.uuid4(), 20000 + os.getpid() % 10000 * 4
        for name in ("mon", "osd"):
            (folder / name).mkdir()
        (folder / "keyring").touch()
        self.configurations = {}
        for name, cache in (("rbd", "false"), ("rbd-cache", "true")):
            path = self.configurations[name] = folder / f"{name}.conf"
            path.write_text(CONFIGURATION.format(fsid=fsid, port=port, first=port + 1, last=port + 100, folder=folder, block=8 * GIB, cache=cache))
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", folder / "monmap")
        self.do("ceph-mon", "-i", "a", "--mkfs", "--monmap", folder / "monmap")
        self.launch("ceph-mon", "-i", "a")
        wait_until("the monitor answers", lambda: self.do("ceph", "--connect-timeout", "2", "mon", "stat"), 60, every_s=0.2)
        osd = uuid.uuid4()
        self.do("ceph", "osd", "new", osd)
        self.do("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.launch("ceph-osd", "-i", "0")
        wait_until("the OSD is up", lambda: "1 up" in self.do("ceph", "osd", "stat"), 60, every_s=0.2)
        self.do("ceph", "osd", "pool", "create", "rbd", "8")
        self.do("rbd", "create", "disk", "--size", f"{DISK // MIB}M")
        load.fill([self.place()], WORKING_SET, env=self.env("rbd-cache"), warm=True)

    def do(self, program, *arguments):
        return run(program, "-c", self.configurations["rbd"], *arguments, timeout=120).stdout

    def launch(self, program, *arguments):
        with open(self.folder / f"{program}.out", "ab") as log:
            self.programs[program] = subprocess.Popen([program, "-f", "-c", self.configurations["rbd"], *arguments], stdin=subprocess.DEVNULL, stdout=log,
                                                      stderr=log, start_new_session=True)

    def env(self, name):
        return {"CEPH_CONF": str(self.configurations[name])}

    @staticmethod
    def place():
        return ["--ioengine=rbd", "--clientname=admin", "--pool=rbd", "--rbdname=disk"]

    def close(self):
        for program in reversed(self.programs.values()):
            program.terminate()
            try:
                program.wait(30)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Peers:
    """Those that are here, and why others are not."""

    def __init__(self, wanted, zerofs_path):
        self.ends, self.ceph, self.zerofs = contextlib.ExitStack(), None, None
        self.versions, self.missing = [], []
        lacking = [name for name in CEPH_PROGRAMS if not shutil.which(name)]
        program = pathlib.Path(zerofs_path or zerofs.PROGRAM)
        if "rbd" in wanted and lacking:
            self.missing.append(f"RBD, for want of {', '.join(lacking)} (packaging/setup.sh ceph)")
        if "zerofs" in wanted and not program.exists():
            self.missing.append(f"ZeroFS, for want of {program} (the head of tests/bench/objects.py says how to build it)")
        try:
            if "rbd" in wanted and not lacking:
                self.ceph = Ceph()
                self.ends.callback(self.ceph.close)
                self.versions.append(self.ceph.do("ceph", "--version").split("(")[0].strip())
            if "zerofs" in wanted and program.exists():
                self.zerofs = zerofs.ZeroFs(program, DISK, WORKING_SET)
                self.ends.callback(self.zerofs.close)
                self.versions.append(self.zerofs.version)
        except BaseException:
            self.ends.close()
            raise

    def of(self, row):
        """Who takes part in a row, beside ovs."""
        return [*(["rbd", "rbd-cache"] if self.ceph and row != "write-4k-16conn" else []), *(["zerofs"] if self.zerofs else [])]

    def close(self):
        self.ends.close()


def measure(ovs, peers, target, row, seconds):
    # Of jobs that are reported as one nobody says how long each took.
    options = [option for option in ALL_ROWS[row][1] if option != "--group_reporting"]
    if target == "ovs":
        with ovs.open(row) as (place, pid):
            return load.fio([place], options, WORKING_SET, seconds, {"server": pid})
    if target == "zerofs":
        with peers.zerofs.server() as pid:
            return load.fio([peers.zerofs.place()], options, WORKING_SET, seconds, {"server": pid})
    ceph = peers.ceph
    pids = {name: program.pid for name, program in ceph.programs.items()}
    one = load.fio([ceph.place()], options, WORKING_SET, seconds, pids, env=ceph.env(target))
    time.sleep(1)
    return one._replace(cpu_us={**one.cpu_us, "server": sum(one.cpu_us[name] for name in pids)})


def judge(results):
    rows = []
    for peer in list(TARGETS)[1:]:
        for row, (must, aim) in LIMITS.items():
            share = ratios(*([one.total for one in results[row].get(target, [])] for target in ("ovs", peer)))
            if share:
                rows.append(Goal(f"{ALL_ROWS[row][0]}: of {TARGETS[peer]}", share, "x", must, aim, more_is_better=True))
    return goals(rows)


def details(results, row):
    is_large = row.endswith("1m")
    heads = ["", "MB/s" if is_large else "IOPS", "p50 µs", "p99 µs", "server CPU µs per op", "fio CPU µs per op"]
    lines = []
    for target, runs in results[row].items():
        lines.append([TARGETS[target], spread([one.mb_s if is_large else one.total for one in runs], 0), spread([one.percentile(0.5) for one in runs], 0),
                      spread([one.percentile(0.99) for one in runs], 0), *(spread([one.cpu_us[who] for one in runs]) for who in ("server", "fio"))])
    return f"## {ALL_ROWS[row][0]}\n\n" + table(heads, lines)


def main():
    page = Page("objects", "Beside disks kept as objects", __doc__, disk_gib=20, rounds=3, seconds=3)
    page.parser.add_argument("--zerofs", metavar="PATH", help="its program")
    page.parser.add_argument("--peers", default="rbd,zerofs", help="those that are to take part if they are here")
    options = page.options()
    with contextlib.ExitStack() as cleanups:
        peers = Peers(options.peers.split(","), options.zerofs)
        cleanups.callback(peers.close)
        for line in peers.missing:
            print(f"not here: {line}")
        rows = [row for row in LIMITS if peers.of(row)]
        if not rows:
            sys.exit("there is nothing here to measure against")
        ovs = Ovs(ROOTS)
        cleanups.callback(ovs.close)
        results = {row: {target: [] for target in ("ovs", *peers.of(row))} for row in LIMITS}
        for row in rows:
            for number, target in alternate(options.rounds, results[row]):
                one = measure(ovs, peers, target, row, options.seconds)
                results[row][target].append(one)
                page.note(f"round {number + 1}/{options.rounds} {row:16} {target:9} {one.total:9,.0f} IOPS, p50 {one.percentile(0.5):,.0f} µs")
        stored = f" Of what ZeroFS flushes nothing is synced; its store had {peers.zerofs.stored_mib():,.0f} MiB in the end." if peers.zerofs else ""
    page.write(f"{'; '.join(peers.versions)}.{''.join(f' Not here: {line}.' for line in peers.missing)} {WORKING_SET // MIB} MiB of {DISK // GIB} GiB, all of it in "
               f"caches, {options.seconds} s a run. p50 and p99 are of the operations, without the flushes.{stored}", judge(results),
               *(details(results, row) for row in rows))


if __name__ == "__main__":
    main()

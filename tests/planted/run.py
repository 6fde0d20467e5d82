#!/usr/bin/python3
"""`make planted`: shows that the tests find every planted defect. [NAME...] only those whose name contains one of these.

One build with the feature `planted`; then each defect is chosen by OVS_PLANTED, and the tests that are likely to find it
run until one fails, or hangs twice for far longer than it takes without a defect. First all of them run without any, and
must pass. As many at a time as there are processors. Prints a table: the defect, who finds it, after how long. Exit
code 1 when one is not found.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# A defect may be a deadlock: so long at least, and so many times as long as without a defect.
PATIENCE_S, PATIENCE_TIMES = 60, 15

# Test binaries: (package, target kind, name, arguments, environment).
SIMULATION = ("ovs-tests", "test", "simulation", ["every_seed"], {})
SWEEP = ("ovs-tests", "test", "sweep", ["a_crash"], {"OVS_SEEDS": "2"})
CALLS = ("ovs-tests", "test", "sweep", ["a_failure"], {"OVS_SEEDS": "2"})
ROT = ("ovs-tests", "test", "sweep", ["a_damage"], {"OVS_SEEDS": "4"})
MODEL = ("ovs-tests", "test", "model", [], {})
FOUND = ("ovs-tests", "test", "found", [], {})
OFFLINE = ("ovs-tests", "test", "offline", [], {})
ROOM = ("ovs-tests", "test", "room", [], {})
OUTAGE = ("ovs-tests", "test", "outage", [], {})
ENGINE = ("ovs-volume", "test", "engine", [], {})
SESSIONS = ("ovs-nbd", "test", "sessions", [], {})
# Ten times as long as all others of its crate together.
SLOW = "what_is_written_again_is_what_was_read_well"
HEAD = ("ovs-volume", "lib", "ovs_volume", ["--skip", SLOW], {})
READ_WELL = ("ovs-volume", "lib", "ovs_volume", [SLOW], {})
LOSSES = ("ovs-volume", "test", "losses", [], {})
CLIENT = ("ovs-nbd", "test", "client", [], {})
COMMANDS = ("ovs-nbd", "test", "commands", [], {})
HELD = ("ovs-nbd", "test", "held", [], {})
BACKEND = ("ovs-backend", "lib", "ovs_backend", [], {})
THREADS = ("ovs-backend", "shuttle", "ovs_backend", ["concurrency"], {"OVS_SCHEDULES": "300"})
LIVES = ("ovs-backend", "lib", "ovs_backend", ["coded::"], {})
CLUSTER = ("ovs-cluster", "lib", "ovs_cluster", [], {})

# Who looks for a defect, by how its name begins: the quick ones and those that find the most first.
CORE = [HEAD, FOUND, OUTAGE, ROOM, SIMULATION, LOSSES, OFFLINE, SWEEP, CALLS, ROT, MODEL, ENGINE, READ_WELL]
FINDERS = {"cache": [HEAD, ENGINE, SIMULATION, MODEL], "limits": [HEAD, MODEL], "session": [SESSIONS], "client": [CLIENT], "maps": [ENGINE], "nbd": [COMMANDS, SESSIONS, HELD], "directory": [BACKEND, THREADS], "drives": [LIVES], "registry: a commit": [CLUSTER]}


def planted():
    """Every name in the sources, once each."""
    names = {}
    for path in sorted(REPOSITORY.glob("core/*/src/**/*.rs")):
        for name in re.findall(r'planted\(\s*"([^"]+)"\s*\)', path.read_text()):
            names.setdefault(name, path.relative_to(REPOSITORY))
    return names


def build(packages, *features):
    """Builds the test binaries; returns {(kind, name, the crate's folder): (path, folder)}."""
    command = ["cargo", "test", "--locked", "--no-run", "--message-format=json", "--features", ",".join(["ovs-units/planted", *features]),
               *[f"-p{package}" for package in ["ovs-units", *packages]]]
    built = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True).stdout
    binaries = {}
    for line in built.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable") and message["profile"]["test"]:
            kind, name = message["target"]["kind"][0], message["target"]["name"]
            folder = pathlib.Path(message["manifest_path"]).parent
            binaries[kind, name, str(folder)] = (message["executable"], folder)
    return binaries


def find(binaries, finder):
    kinds, name, crate = finder[1], finder[2], finder[0].removeprefix("ovs-")
    for (kind, target, folder), found in binaries.items():
        if kind == kinds and target == name and folder.endswith("/" + crate):
            return found
    sys.exit(f"there is no test binary {finder}: {sorted(binaries)}")


def run(binaries, finder, defect, patience_s):
    """What found it, or None."""
    executable, folder = find(binaries, finder)
    environment = {**os.environ, "OVS_PLANTED": defect, "RUST_BACKTRACE": "0", **finder[4]}
    for _ in range(2):  # a busy machine is no deadlock
        try:
            done = subprocess.run([executable, *finder[3]], cwd=folder, env=environment, timeout=patience_s, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            break
        except subprocess.TimeoutExpired:
            pass
    else:
        return f"{finder[0]} {finder[2]}: it hangs"
    if done.returncode == 0:
        return None
    failed = re.findall(r"^test (\S+) \.\.\. FAILED|^(\S+) --- FAILED", done.stdout, re.MULTILINE)
    tests = ", ".join(a or b for a, b in failed[:2]) or f"exit code {done.returncode}"
    return f"{finder[0]} {finder[2]}: {tests}" + (f" and {len(failed) - 2} more" if len(failed) > 2 else "")


def finders_of(name):
    for start, finders in FINDERS.items():
        if name.startswith(start):
            return finders
    return CORE


def main():
    names, wanted = planted(), sys.argv[1:]
    chosen = [name for name in names if not wanted or any(part in name for part in wanted)]
    binaries = build(["ovs-backend"], "ovs-backend/shuttle")
    threads = {("shuttle", name, folder): found for (_, name, folder), found in binaries.items()}
    binaries = {**build(["ovs-tests", "ovs-volume", "ovs-nbd", "ovs-backend", "ovs-cluster"]), **threads}
    used = {json.dumps(finder): finder for name in chosen for finder in finders_of(name)}
    patience_s = {}

    def try_without(key):
        start = time.monotonic()
        found = run(binaries, used[key], "", 600)
        patience_s[key] = max(PATIENCE_S, PATIENCE_TIMES * (time.monotonic() - start))
        return found

    def look_for(name):
        start = time.monotonic()
        tries = (run(binaries, finder, name, patience_s[json.dumps(finder)]) for finder in finders_of(name))
        return name, next(filter(None, tries), None), time.monotonic() - start

    missed = []
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for found in pool.map(try_without, used):
            if found:
                sys.exit(f"without any defect: {found}")
        for name, who, took_s in pool.map(look_for, chosen):
            if not who:
                missed.append(name)
            print(f"{'found ' if who else 'MISSED'} {took_s:5.1f} s  {name}  [{names[name]}]  {who or ''}", flush=True)
    print(f"planted: {len(chosen) - len(missed)} of {len(chosen)} defects found")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()

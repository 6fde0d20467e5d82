#!/usr/bin/python3
"""`make coverage`: lines that the hermetic tests reach in the write buffer, the map, snapshots and recovery.

cargo-tarpaulin runs a part of the tests (few seeds: each line counts once) under ptrace. Prints a table by file and the
lines that nothing reached; exit code 1 when a file has less than 95 % without its excused lines (docs/testing.md).
[--again] only prints the last run's.
"""

import json
import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
OUTPUT = TARGET / "coverage"
SHARE_PERCENT_MIN = 95
# Lines counted, as they are written, with the reason why no test reaches them: docs/testing.md.
EXCUSED = REPOSITORY / "docs" / "testing.md"
MODULES = ["core/volume/src", "core/format/src"]
TESTS = ["engine", "losses", "golden", "hostile", "map_copy", "round_trip", "model", "found", "offline", "simulation",
         "sweep"]
SEEDS = {"OVS_SEEDS": "6", "OVS_SUBSETS": "2", "PROPTEST_CASES": "16"}


def measure():
    command = ["cargo", "tarpaulin", "--engine", "ptrace", "--locked", "--skip-clean", "--color", "never",
               "--target-dir", str(OUTPUT / "target"), "--output-dir", str(OUTPUT), "--out", "json", "--timeout", "600",
               "--include-files", *[f"{module}/*" for module in MODULES],
               "--packages", "ovs-format", "ovs-volume", "ovs-tests", "--lib", "--test", *TESTS]
    # What is inlined has no line of its own.
    environment = {**os.environ, **SEEDS, "CARGO_PROFILE_DEV_OPT_LEVEL": "0", "CARGO_PROFILE_TEST_OPT_LEVEL": "0"}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    log = OUTPUT / "tarpaulin.log"
    print(f"running; {log}", flush=True)
    with open(log, "w") as out:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"coverage: cargo tarpaulin failed; the end of {log}:\n" + "\n".join(log.read_text().splitlines()[-20:]))


def ranges(numbers):
    found = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def excused():
    """{(file, line without indentation)} of the table in docs/testing.md."""
    rows = set()
    for line in EXCUSED.read_text().splitlines() if EXCUSED.exists() else []:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `core/") and len(cells) >= 3:
            rows.add((cells[0].strip("`"), cells[1].strip("`").replace("\\|", "|")))
    return rows


def main():
    if "--again" not in sys.argv[1:]:
        measure()
    report = json.loads((OUTPUT / "tarpaulin-report.json").read_text())
    reasons, used, short = excused(), set(), []
    totals = [0, 0]
    print(f"{'lines':>6} {'reached':>8} {'%':>6}  file")
    for file in sorted(report["files"], key=lambda file: file["path"]):
        path = pathlib.Path(*file["path"]).relative_to(REPOSITORY)
        if not any(path.is_relative_to(module) for module in MODULES) or path.name == "tests.rs":
            continue
        text = file["content"].splitlines()
        traces = []
        for trace in file["traces"]:
            row = (str(path), text[trace["line"] - 1].strip())
            if trace["stats"]["Line"] == 0 and row in reasons:
                used.add(row)
            else:
                traces.append(trace)
        reached = sum(trace["stats"]["Line"] > 0 for trace in traces)
        if not traces:
            continue
        totals = [totals[0] + len(traces), totals[1] + reached]
        share = 100 * reached / len(traces)
        if share < SHARE_PERCENT_MIN:
            short.append(str(path))
        missed = ranges([trace["line"] for trace in traces if trace["stats"]["Line"] == 0])
        print(f"{len(traces):>6} {reached:>8} {share:>6.1f}  {path}  {missed}")
    print(f"{totals[0]:>6} {totals[1]:>8} {100 * totals[1] / totals[0]:>6.1f}  all")
    for path, line in sorted(reasons - used):
        print(f"excused, but reached or gone: {path}: {line}")
    if short:
        sys.exit(f"coverage: less than {SHARE_PERCENT_MIN} % in {', '.join(short)}")


main()

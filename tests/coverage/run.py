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
MODULES = ["core/format/src", *(f"core/volume/src/{module}" for module in (
    "cache", "engine", "log", "map", "vdisk", "head.rs", "journal.rs", "overlay.rs", "sco.rs"))]
# The sweep is left out: a seed of it takes minutes here and reaches one line that the others do not.
TESTS = ["device", "engine", "losses", "golden", "hostile", "lies", "map_copy", "round_trip", "model", "found", "offline",
         "outage", "room", "simulation"]
SEEDS = {"OVS_SEEDS": "6", "PROPTEST_CASES": "16"}


def measure():
    command = ["cargo", "tarpaulin", "--engine", "ptrace", "--locked", "--skip-clean", "--color", "never",
               "--target-dir", str(OUTPUT / "target"), "--output-dir", str(OUTPUT), "--out", "json", "--timeout", "600",
               "--include-files", "core/format/src/*", "core/volume/src/*",
               "--packages", "ovs-format", "ovs-volume", "ovs-tests", "--lib", "--test", *TESTS]
    # What is inlined has no line of its own.
    environment = {**os.environ, **SEEDS, "CARGO_PROFILE_DEV_OPT_LEVEL": "0", "CARGO_PROFILE_TEST_OPT_LEVEL": "0"}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    log = OUTPUT / "tarpaulin.log"
    print(f"cargo tarpaulin: {log}", flush=True)
    with open(log, "w") as out:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"coverage: cargo tarpaulin failed; the end of {log}:\n" + "\n".join(log.read_text().splitlines()[-20:]))


def reached_lines():
    """{path: (text, {line: whether it was reached})}."""
    files = {}
    for file in json.loads((OUTPUT / "tarpaulin-report.json").read_text())["files"]:
        lines = {trace["line"]: trace["stats"]["Line"] > 0 for trace in file["traces"]}
        files[pathlib.Path(*file["path"]).relative_to(REPOSITORY)] = (file["content"].splitlines(), lines)
    return files


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


def planted(text):
    """Lines of planted defects, which only `make planted` runs."""
    lines, end = set(), None
    for number, line in enumerate(text, 1):
        indentation = line[: len(line) - len(line.lstrip())]
        if "planted(" in line and end is None and not line.lstrip().startswith(("//", "use")):
            lines.add(number)
            # An `if` whose condition goes on in the next lines, or a block.
            if line.endswith("{") or line.lstrip().startswith("if "):
                end = indentation + "}"
        elif end is not None:
            lines.add(number)
            end = None if line.startswith(end) else end
    return lines


def main():
    if "--again" not in sys.argv[1:]:
        measure()
    reasons, used, short = excused(), set(), []
    lines_all = reached_all = 0
    print(f"{'lines':>6} {'reached':>8} {'%':>6}  file")
    for path, (text, lines) in sorted(reached_lines().items()):
        if not any(path.is_relative_to(module) for module in MODULES) or path.name == "tests.rs":
            continue
        missed = []
        for line in planted(text):
            lines.pop(line, None)
        for line, is_reached in sorted(lines.items()):
            row = (str(path), text[line - 1].strip())
            if is_reached:
                continue
            if row in reasons:
                used.add(row)
                del lines[line]
            else:
                missed.append(line)
        if not lines:
            continue
        reached = len(lines) - len(missed)
        lines_all, reached_all = lines_all + len(lines), reached_all + reached
        share = 100 * reached / len(lines)
        if share < SHARE_PERCENT_MIN:
            short.append(str(path))
        print(f"{len(lines):>6} {reached:>8} {share:>6.1f}  {path}  {ranges(missed)}")
    print(f"{lines_all:>6} {reached_all:>8} {100 * reached_all / lines_all:>6.1f}  all")
    for path, line in sorted(reasons - used):
        print(f"excused, but reached or gone: {path}: {line}")
    if short:
        sys.exit(f"coverage: less than {SHARE_PERCENT_MIN} % in {', '.join(short)}")


main()

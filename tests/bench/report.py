"""Pages of docs/benchmarks: what must be, what is aimed for, what was reached; and the machine it was reached on."""

import argparse
import datetime
import os
import pathlib
import platform
import shutil
import signal
import statistics
import sys
from typing import NamedTuple

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "integration"))
sys.dont_write_bytecode = True
from stack import BIN, GIB, ROOTS, run  # noqa: E402

PAGES = REPOSITORY / "docs/benchmarks"
# Of a processor, before the first run: below it nobody else works.
QUIET_LOAD = 0.5


class Rounds(list):
    """A value per round, and what they come to together where that is not their median."""

    def __init__(self, values, middle):
        super().__init__(values)
        self.middle = middle


def ratios(above, below):
    """Of two figures, a pair per round: what counts is the ratio of their medians."""
    above, below = zip(*pairs) if (pairs := list(zip(above, below))) else ((), ())
    return Rounds([one / other for one, other in pairs], statistics.median(above) / statistics.median(below) if pairs else None)


def middle(values):
    return values.middle if isinstance(values, Rounds) else statistics.median(values)


class Goal(NamedTuple):
    """One figure, a value per round, against its two limits. It is the median that reaches them, and of ratios that of the medians."""

    what: str
    values: list
    unit: str
    must: float | None = None
    aim: float | None = None
    more_is_better: bool = False
    digits: int = 1

    def reaches(self, limit):
        value = middle(self.values)
        return value >= limit if self.more_is_better else value <= limit

    def reached(self):
        if self.must is None and self.aim is None:
            return "-"
        if not self.values:
            return "not measured"
        if self.aim is not None and self.reaches(self.aim):
            return "aim"
        if self.must is None:
            return "not the aim"
        return "must" if self.reaches(self.must) else "**missed**"

    def limit(self, value):
        return "-" if value is None else f"{'≥' if self.more_is_better else '≤'} {value:,.{digits_of(value)}f} {self.unit}".strip()

    def cells(self):
        must = "no figure given" if self.must is None and self.aim is None else self.limit(self.must)
        return [self.what, must, self.limit(self.aim), f"{spread(self.values, self.digits)} {self.unit}".strip(), self.reached()]


def digits_of(value):
    return 0 if value == int(value) else 1 if round(value, 1) == value else 2


def spread(values, digits=1):
    """Median [min-max]."""
    if not isinstance(values, Rounds):
        values = [value for value in values if value is not None]
    if not values:
        return "-"
    median, least, most = (f"{value:,.{digits}f}" for value in (middle(values), min(values), max(values)))
    return f"{median} [{least}-{most}]"


def table(heads, rows):
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def goals(rows):
    return table(["", "must", "aim", "median [min-max]", "reached"], [row.cells() for row in rows])


def alternate(rounds, names):
    """Each round every name; odd rounds in the reverse order, so that a machine that gets busier or warmer wrongs nobody."""
    for number in range(rounds):
        for name in names if number % 2 == 0 else list(names)[::-1]:
            yield number, name


def processor():
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def file_system(path):
    return run("findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", path, check=False).stdout.split()


class Page:
    """One page: the options of its script, the load while it ran, the text."""

    def __init__(self, name, title, doc, disk_gib, rounds, seconds=None):
        self.title, self.disk_gib = title, disk_gib
        self.parser = argparse.ArgumentParser(description=doc.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
        self.parser.add_argument("--rounds", type=int, default=rounds)
        if seconds:
            self.parser.add_argument("--seconds", type=int, default=seconds, help="of each run of fio")
        self.parser.add_argument("--out", type=pathlib.Path, default=PAGES / f"{name}.md")
        self.loads = []

    def options(self):
        self.arguments = self.parser.parse_args()
        assert BIN.exists(), f"{BIN} is not there: make build"
        free_gib = shutil.disk_usage(ROOTS).free / GIB
        assert free_gib > self.disk_gib, f"{ROOTS} has {free_gib:.0f} GiB free, {self.disk_gib} are needed"
        # So that what was started is stopped, and what was made is removed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
        self.begin_load = os.getloadavg()[0]
        return self.arguments

    def note(self, line):
        """Progress, and the load as it is."""
        self.loads.append(os.getloadavg()[0])
        print(f"load {self.loads[-1]:4.1f}  {line}", flush=True)

    def machine(self):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        kind, source = (file_system(ROOTS) + ["?", "?"])[:2]
        return f"{os.cpu_count()} CPUs ({processor()}), {memory:.0f} GiB of memory, {kind} on {source}, kernel {platform.release()}"

    def how_quiet(self):
        limit = QUIET_LOAD * os.cpu_count()
        word = "quiet" if self.begin_load <= limit else "**not quiet: these figures are no results**"
        return (f"Load average {self.begin_load:.1f} before the first run ({word}: up to {limit:.1f} counts as quiet), "
                f"{min(self.loads):.1f} to {max(self.loads):.1f} meanwhile, these runs among it.")

    def text(self, *sections):
        revision = run("git", "-C", REPOSITORY, "rev-parse", "--short", "HEAD", check=False).stdout.strip()
        command = " ".join(["python3", f"tests/bench/{pathlib.Path(sys.argv[0]).name}", *sys.argv[1:]])
        rounds = self.arguments.rounds
        return "\n\n".join([
            f"# {self.title}",
            f"{datetime.date.today().isoformat()}, revision {revision}, `{command}`: {rounds} round{'s' * (rounds != 1)}. {self.machine()}. {self.how_quiet()}",
            "*Must* is what each row has to reach, *aim* what we want; *reached* compares the median with both. Ratios are of medians; between [ and ] are those of single rounds.",
            *sections]) + "\n"

    def write(self, *sections):
        text = self.text(*sections)
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        self.arguments.out.write_text(text)
        print(f"\n{text}\nwritten to {self.arguments.out}")

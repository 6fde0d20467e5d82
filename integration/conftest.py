"""Fixtures: `ovs` is a fresh root with a running ovsd; `edge` adds ovsd-edge. A failed case shows its programs' logs."""

import os
import random

import pytest

from stack import BIN, KEPT_LOGS, Stack

# What `make test-full` raises.
SCALE = int(os.environ.get("OVS_TEST_SCALE", "1"))


def pytest_configure(config):
    config.addinivalue_line("markers", "timeout: seconds this case may take (pytest-timeout)")
    if os.geteuid() != 0:
        pytest.exit("the integration tests mount and use loop devices: run them as root", 4)
    absent = [name for name in ("ovsd", "ovs", "ovsd-edge", "ovsd-docker") if not (BIN / name).exists()]
    if absent:
        pytest.exit(f"not built: {', '.join(absent)} in {BIN} (make build, or set OVS_BIN)", 4)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if not report.failed:
        return
    for stack in getattr(item, "stacks", []):
        for program in stack.programs:
            kept = KEPT_LOGS / stack.root.name / program.log.name
            text = program.tail(40) or (kept.read_text(errors="replace")[-6000:] if kept.exists() else "")
            if text:
                report.sections.append((f"{program.name} ({KEPT_LOGS / stack.root.name})", text))


def use(request, stack):
    if not hasattr(request.node, "stacks"):
        request.node.stacks = []
    request.node.stacks.append(stack)
    return stack


@pytest.fixture
def make_stack(request):
    """Makes roots with a configuration of their own; all are closed at the end."""
    made = []

    def make(config=None):
        stack = use(request, Stack(config=config))
        made.append(stack)
        return stack

    yield make
    problems = []
    for stack in reversed(made):
        try:
            stack.close()
        except AssertionError as error:
            problems.append(str(error))
    assert not problems, "; ".join(problems)


@pytest.fixture
def ovs(make_stack):
    """A fresh root, ovsd running."""
    return make_stack().start()


@pytest.fixture
def edge(ovs):
    """The same with ovsd-edge: its vPool is a folder of files."""
    return ovs.start_edge()


@pytest.fixture
def chance(request):
    """Random numbers from a seed that a failed run prints and OVS_TEST_SEED repeats."""
    seed = int(os.environ.get("OVS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    print(f"seed: OVS_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def scale():
    return SCALE

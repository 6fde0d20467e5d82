"""PostgreSQL in a container on an ovs volume, under pgbench, while the programs are killed: no lost commit, no corruption."""

import subprocess
import threading
import time

import pytest

from dockerd import IMAGE, Dockerd, Driver
from stack import MIB, run, unique, wait_until
from test_docker import released
from test_faults import ROUNDS, TROUBLE_S, Trouble

START = """[ -s $PGDATA/PG_VERSION ] || initdb --auth=trust >/dev/null
exec postgres -c listen_addresses= -c shared_buffers=32MB -c checkpoint_timeout=30s -c max_wal_size=256MB"""

BALANCES = """select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
    (select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history)"""


@pytest.fixture(scope="module")
def docker():
    dockerd = Dockerd()
    try:
        dockerd.start()
        dockerd.import_image()
        yield dockerd
    finally:
        dockerd.close()


class Postgres:
    """One server in a container, its cluster on a volume."""

    def __init__(self, driver, volume):
        self.driver, self.volume, self.name = driver, volume, unique("pg")

    def start(self):
        self.driver.docker("run", "-d", "--init", "--name", self.name, "--network", "none", "--label", self.driver.name, "-u", "postgres",
                           f"--volume-driver={self.driver.name}", "-v", f"{self.volume}:/data", IMAGE, "bash", "-c", START)
        self.wait_ready()
        return self

    def wait_ready(self, timeout_s=60):
        try:
            wait_until("PostgreSQL answers", lambda: self.sql("select 1", "postgres", timeout=10) == "1", timeout_s, every_s=0.2)
        except AssertionError as error:
            done = self.driver.docker("logs", "--tail", "20", self.name, check=False)
            raise AssertionError(f"{error}\nits log:\n{done.stdout}{done.stderr}") from None

    def run(self, *argv, check=True, timeout=120):
        return self.driver.docker("exec", self.name, *argv, check=check, timeout=timeout)

    def sql(self, text, database="bench", timeout=60):
        return self.run("psql", "-qAtX", "-F", " ", "-c", text, database, timeout=timeout)

    def prepare(self, scale=3):
        self.run("createdb", "bench")
        self.run("pgbench", "--initialize", "--quiet", f"--scale={scale}", "bench")
        self.sql("create extension amcheck; create table ledger (id bigint primary key, at timestamptz default now())")

    def load(self, seconds, clients=4):
        """pgbench, going on in the background. Without its vacuum, which would also empty pgbench_history."""
        return self.driver.docker.start_process(
            "exec", self.name, "pgbench", "--no-vacuum", f"--client={clients}", "--jobs=1", f"--time={seconds}", "bench",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)

    def check(self):
        """pg_amcheck finds nothing, pgbench's sums agree."""
        self.run("pg_amcheck", "--heapallindexed", "--parent-check", "bench")
        sums = self.sql(BALANCES).split()
        assert len(sums) == 4 and len(set(sums)) == 1, f"accounts, branches, tellers, history: {sums}"

    def stop(self):
        self.driver.docker("stop", "-t", "60", self.name)
        self.driver.docker("rm", self.name)


class Ledger:
    """Commits numbers one after the other over one session and remembers outside which were answered."""

    def __init__(self, postgres):
        self.postgres, self.committed, self.next = postgres, [], 1
        self.stop_asked = threading.Event()
        self.thread = threading.Thread(target=self.loop)

    def session(self):
        process = self.postgres.driver.docker.start_process(
            "exec", "-i", self.postgres.name, "psql", "-qAtX", "bench", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True)
        try:
            while not self.stop_asked.is_set():
                number, self.next = self.next, self.next + 1
                process.stdin.write(f"insert into ledger values ({number}) returning id;\n")
                process.stdin.flush()
                if process.stdout.readline().strip() != str(number):
                    return  # the server or the container went away: unknown, so not counted
                self.committed.append(number)
        except BrokenPipeError:
            return
        finally:
            process.stdin.close()
            process.kill()
            process.wait(30)

    def loop(self):
        while not self.stop_asked.is_set():
            self.session()
            self.stop_asked.wait(0.2)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop_asked.set()
        self.thread.join(90)
        assert not self.thread.is_alive(), "the ledger's session hangs"

    def check(self):
        present = set(map(int, self.postgres.sql("select id from ledger").split()))
        lost = [number for number in self.committed if number not in present]
        assert not lost, f"{len(lost)} of {len(self.committed)} commits are lost: {lost[:10]}"
        assert len(self.committed) > 50, f"only {len(self.committed)} commits were made"


@pytest.fixture
def postgres(edge, docker):
    driver = Driver(edge, docker).start()
    driver.create("db", "size=2GiB", "uid=101", "gid=103", "mode=0700")
    postgres = Postgres(driver, "db").start()
    postgres.prepare()
    return postgres


def fsck(postgres):
    postgres.stop()
    released(postgres.driver, postgres.volume)
    run("e2fsck", "-fn", postgres.driver.stack.file(postgres.volume))


def killed_under_load(postgres, chance, kill, kills=4, seconds=14):
    """pgbench and a ledger, `kill` at random moments; pgbench must see no error at all."""
    load = postgres.load(seconds)
    with Ledger(postgres) as ledger:
        for _ in range(kills):
            time.sleep(1 + chance.random() * 2)
            kill()
        output, _ = load.communicate(timeout=120)
    assert load.returncode == 0 and "number of failed transactions: 0 " in output, output
    ledger.check()
    postgres.check()
    fsck(postgres)


@pytest.mark.timeout(240)
def test_ovsd_killed(postgres, chance):
    """A pause for PostgreSQL; no transaction fails."""
    stack = postgres.driver.stack

    def kill():
        stack.ovsd.kill9()
        time.sleep(chance.random())
        stack.restart()

    killed_under_load(postgres, chance, kill)


@pytest.mark.timeout(150 + 90 * ROUNDS)
def test_trouble(postgres, chance):
    """ovsd killed, held and starved, ovsd-edge held and starved, at moments from the seed: a pause for PostgreSQL."""
    stack = postgres.driver.stack
    load = postgres.load(TROUBLE_S + 2)
    with Ledger(postgres) as ledger, Trouble(stack, chance, [stack.ovsd], [stack.edge]):
        time.sleep(TROUBLE_S)
    output, _ = load.communicate(timeout=120)
    assert load.returncode == 0 and "number of failed transactions: 0 " in output, output
    ledger.check()
    postgres.check()
    fsck(postgres)


@pytest.mark.timeout(240)
def test_driver_killed(postgres, chance):
    """Nobody notices at all."""
    driver = postgres.driver

    def kill():
        driver.program.kill9()
        time.sleep(chance.random())
        driver.restart()

    killed_under_load(postgres, chance, kill, seconds=12)


@pytest.mark.timeout(240)
def test_edge_killed(postgres, chance):
    """This costs the container a restart; every commit it was told of is there, and nobody cleans up by hand."""
    stack = postgres.driver.stack
    for _ in range(2):
        load = postgres.load(30)
        with Ledger(postgres) as ledger:
            time.sleep(2 + chance.random() * 2)
            stack.edge.kill9()
            time.sleep(0.5)
            stack.start_edge()
        load.kill()
        load.wait()

        def again():
            postgres.driver.docker("restart", "-t", "5", postgres.name, timeout=60)
            postgres.wait_ready(15)
            return True

        wait_until("the container runs again", again, 90, every_s=1)
        ledger.check()
        postgres.sql("truncate ledger")
    postgres.check()
    fsck(postgres)


@pytest.mark.timeout(240)
def test_everything_killed_at_once(postgres, chance):
    """ovsd, ovsd-edge and ovsd-docker in one moment, as an out-of-memory killer would."""
    driver, stack = postgres.driver, postgres.driver.stack
    load = postgres.load(30)
    with Ledger(postgres) as ledger:
        time.sleep(3 + chance.random() * 2)
        for program in (stack.ovsd, stack.edge, driver.program):
            program.kill9()
        stack.restart()
        stack.start_edge()
        driver.restart()
    load.kill()
    load.wait()

    def again():
        driver.docker("restart", "-t", "5", postgres.name, timeout=60)
        postgres.wait_ready(15)
        return True

    wait_until("the container runs again", again, 90, every_s=1)
    ledger.check()
    postgres.check()
    fsck(postgres)


@pytest.mark.timeout(240)
def test_snapshots_under_load_are_good_databases(postgres):
    """Each snapshot, cloned to a second container, recovers as after a power cut and is consistent."""
    driver = postgres.driver
    load = postgres.load(10)
    for number in range(2):
        time.sleep(3)
        driver.stack.ovs("snapshot", "create", f"default/db@s{number}")
    output, _ = load.communicate(timeout=60)
    assert load.returncode == 0, output
    for number in range(2):
        driver.create(f"copy{number}", f"from=db@s{number}")
        copy = Postgres(driver, f"copy{number}").start()
        copy.check()
        copy.sql("insert into ledger values (-1)")
        fsck(copy)
    postgres.check()
    assert driver.stack.show("copy0")["size_bytes"] == 2048 * MIB
    fsck(postgres)

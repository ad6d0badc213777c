"""The schedule of `retrain` with a real server and worker: it fires, survives a restart, and missed ticks do one tick's work."""

import os
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from flows.retrain import LOOKED, NOTHING_NEW, _covered
from flows.server import free_port
from tests.conftest import Checkout
from tests.flows.test_retrain import answers, kill, start_prefect, wait_for

TICK_SECONDS = 6


class Clockwork:
    """A checkout with nothing to do, whose deployment `retrain` is due every few seconds."""

    def __init__(self, checkout: Checkout, request: pytest.FixtureRequest) -> None:
        self.checkout, self.root, self.request = checkout, checkout.root, request
        checkout.pipeline({"left": []})
        declared = yaml.safe_load((self.root / "prefect.yaml").read_text())
        (retrain,) = (each for each in declared["deployments"] if each["name"] == "retrain")
        assert [schedule["active"] for schedule in retrain["schedules"]] == [False]  # nobody retrains unasked
        retrain["schedules"] = [{"interval": TICK_SECONDS, "active": True, "slug": "often"}]
        (self.root / "prefect.yaml").write_text(yaml.safe_dump(declared | {"deployments": [retrain]}))
        self.port = free_port(0)
        self.environment = {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_HOME": str(self.root / ".prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "UNMASK_ROOT": str(self.root),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_PREFETCH_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        }

    def prefect(self, *arguments: str) -> None:
        done = self.checkout.python("-m", "prefect", "--no-prompt", *arguments, **self.environment)
        assert done.returncode == 0, done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        process = start_prefect(self.checkout, self.environment, *arguments)
        self.request.addfinalizer(lambda: kill(process))
        return process

    def server(self) -> subprocess.Popen[bytes]:
        process = self.start("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        wait_for(lambda: answers(f"{self.environment['PREFECT_API_URL']}/health"), 240)
        return process

    def runs(self, since: datetime, until: datetime) -> list[str]:
        """How the runs ended, or stand, that were due in a span of time: messages, or else states."""
        with sqlite3.connect(self.root / ".prefect/prefect.db") as database:
            found = database.execute(
                "select coalesce(nullif(s.message, ''), r.state_name) from flow_run r "
                "left join flow_run_state s on s.id = r.state_id "
                "where r.expected_start_time between ? and ? "
                "order by r.expected_start_time",
                (f"{since:%Y-%m-%d %H:%M:%S}", f"{until:%Y-%m-%d %H:%M:%S}"),
            ).fetchall()
        return [str(row[0]) for row in found]


@pytest.mark.slow
def test_missed_ticks_do_the_work_of_one_and_the_schedule_goes_on(
    checkout: Checkout, request: pytest.FixtureRequest
) -> None:
    clock = Clockwork(checkout, request)
    assert checkout.python("-m", "dvc", "repro", "left", PATH=_path()).returncode == 0  # so that nothing is out of date
    server = clock.server()
    clock.prefect("work-pool", "create", "unmask", "--type", "process")
    clock.prefect("deploy", "--all")
    began = datetime.now(UTC)
    wait_for(lambda: len(clock.runs(began, began + timedelta(seconds=60))) > 5, 240)  # made in advance
    kill(server)  # the machine goes down ...
    assert not answers(f"{clock.environment['PREFECT_API_URL']}/health")
    time.sleep(4 * TICK_SECONDS)
    clock.server()
    back = datetime.now(UTC)  # ... and comes back
    clock.start("worker", "start", "--pool", "unmask")

    def later() -> list[str]:
        return [end for end in clock.runs(back, datetime.now(UTC)) if end == NOTHING_NEW]

    wait_for(later, 900)  # a tick after the restart has looked: 30 s on an idle machine
    missed = clock.runs(began, back)
    assert len(missed) >= 3
    assert missed.count(NOTHING_NEW) <= 1, missed
    assert not {"Running", "Pending"} & set(missed)


def test_a_tick_due_before_the_last_look_is_covered_unless_the_clock_was_set_back(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    began = time.time() - 1
    assert _covered(tmp_path, "first", began) == ""  # the first looks
    for late in (began, began - 86400):
        assert "did this one's work" in _covered(tmp_path, "late", late)
    assert _covered(tmp_path, "first", began) == ""  # was killed and begins again
    assert _covered(tmp_path, "next", time.time() + 1) == ""
    os.utime(tmp_path / LOOKED, (time.time() + 3600,) * 2)
    assert _covered(tmp_path, "late", began) == ""  # or nothing would look for an hour
    assert (tmp_path / LOOKED).stat().st_mtime <= time.time()


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"

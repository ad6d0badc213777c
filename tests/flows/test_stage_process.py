"""Ends of stage processes: what they mean, and that nothing outlives the one who started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import stage_process
from flows.stage_process import GUARD, SAYS_WHY, WAITS, StageProcesses, _lines_of, judge

FAILED = "ERROR: failed to reproduce 'x': failed to run: python -m tasks.x, exited with {}"


@pytest.mark.parametrize("code", [-9, -15, 137, 75])
def test_a_stage_that_was_killed_or_refused_by_the_system_may_be_tried_again(code: int) -> None:
    assert judge(255, ["Running stage 'x':", FAILED.format(code)], 1.0).can_be_retried


@pytest.mark.parametrize("code", [1, 2])
def test_wrong_input_and_a_bug_are_not_tried_again(code: int) -> None:
    outcome = judge(255, ["Running stage 'x':", FAILED.format(code)], 1.0)
    assert outcome.status == "failed"
    assert not outcome.can_be_retried


def test_a_held_lock_may_be_tried_again_but_a_stopped_run_may_not() -> None:
    busy = ["ERROR: 'data/raw' is busy, it is being blocked by:", "  (PID 12): dvc repro x"]
    assert judge(255, busy, 1.0).can_be_retried
    assert not judge(255, busy, 1.0, stopped=True).can_be_retried
    assert not judge(255, [FAILED.format(-15)], 1.0, stopped=True).can_be_retried


def test_a_stage_waits_as_often_as_another_holds_what_it_needs_and_its_own_failure_is_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_process, "WAIT_SECONDS", 0.01)
    tries = tmp_path / "tries"
    busy = "\"ERROR: 'data/raw' is busy, it is being blocked by:\""
    script = f"echo x >> {tries}; [ $(wc -l < {tries}) -gt 4 ] || {{ echo {busy}; exit 255; }}"
    outcome = StageProcesses(tmp_path).run_command(["/bin/sh", "-c", script], lambda line: None)
    assert (outcome.status, tries.read_text()) == ("ran", "x\n" * 5)
    failed = judge(255, ["'data/raw' is busy, it is being blocked by:", FAILED.format(1)], 1.0)
    assert failed.reason == "exit code 1"


def test_a_stage_that_waits_can_be_stopped(tmp_path: Path) -> None:
    processes = StageProcesses(tmp_path)
    command = ["/bin/sh", "-c", "echo \"ERROR: 'data/raw' is busy, it is being blocked by:\"; exit 255"]
    outcome = processes.run_command(command, lambda line: processes.stopped.set())
    assert outcome.status == "failed"
    assert outcome.reason in (WAITS, "stopped")


def test_dvc_failing_on_its_own_is_not_taken_for_a_signal() -> None:
    assert not judge(255, ["ERROR: stage 'x' does not exist"], 1.0).can_be_retried


def test_a_stage_program_that_says_why_is_quoted_with_dvcs_own_words() -> None:
    lines = ["ERROR: older", "ERROR: failed to push: no such bucket", "its result cannot be pushed"]
    outcome = judge(SAYS_WHY, lines, 1.0)
    assert outcome.reason == "its result cannot be pushed ERROR: failed to push: no such bucket"
    assert not outcome.can_be_retried


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Running stage 'x':", "ran"),
        ("Stage 'x' is cached - skipping run, checking out outputs", "restored"),
        ("Stage 'x' didn't change, skipping", "unchanged"),
    ],
)
def test_success_says_whether_anything_ran(line: str, status: str) -> None:
    assert judge(0, [line], 1.0).status == status


# A shell that starts a child that ignores SIGTERM, and writes both ids.
STUBBORN = "trap '' TERM; sleep 300 & echo $! > {0}/child; echo $$ > {0}/shell; wait"
TREE = "sleep 300 & echo $! > {0}/child; echo $$ > {0}/shell; wait"


def guarded(script: str, folder: Path) -> list[str]:
    return [sys.executable, "-S", "-E", str(GUARD), "/bin/sh", "-c", script.format(folder)]


def ids(folder: Path) -> list[int]:
    deadline = time.monotonic() + 20
    files = [folder / "child", folder / "shell"]
    while time.monotonic() < deadline and not all(file.exists() and file.read_text().strip() for file in files):
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    if stat.parent.parent.joinpath("self").exists():  # a zombie has ended; only its parent has not looked yet
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    return subprocess.run(["kill", "-0", str(process)], check=False, capture_output=True).returncode == 0


def wait_until_gone(processes: list[int], seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(is_alive, processes)):
        time.sleep(0.05)
    return [process for process in processes if is_alive(process)]


def test_stopping_the_guard_ends_the_whole_tree(tmp_path: Path) -> None:
    guard = subprocess.Popen(guarded(TREE, tmp_path), start_new_session=True)
    tree = ids(tmp_path)
    guard.terminate()
    assert guard.wait(timeout=15) == 128 + signal.SIGTERM
    assert not wait_until_gone(tree, 5)


def test_a_parent_that_is_killed_takes_the_tree_along(tmp_path: Path) -> None:
    code = f"import subprocess, time; subprocess.Popen({guarded(TREE, tmp_path)!r}, start_new_session=True); time.sleep(300)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    tree = ids(tmp_path)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert not wait_until_gone(tree, 10)


@pytest.mark.slow
def test_a_child_that_ignores_the_signal_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    guard = subprocess.Popen(guarded(STUBBORN, tmp_path), start_new_session=True)
    tree = ids(tmp_path)
    guard.terminate()
    guard.wait(timeout=40)
    assert not wait_until_gone(tree, 5)


def test_the_guard_passes_the_exit_code_on(tmp_path: Path) -> None:
    assert subprocess.run(guarded("exit 7", tmp_path), check=False).returncode == 7
    assert subprocess.run(guarded("kill -9 $$", tmp_path), check=False).returncode == 137


def test_a_progress_bar_does_not_flood_the_log() -> None:
    code = "for n in range(500): print(f'{n} of 500', end='\\r', flush=True)\nprint(); print('done')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    lines = list(_lines_of(process))
    process.wait()
    assert lines == ["0 of 500", "499 of 500", "done"]

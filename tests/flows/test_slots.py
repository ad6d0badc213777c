"""Cores are shared by threads, not by stages."""

import tempfile
import threading
import time
from pathlib import Path

from flows.slots import Slots, needs_gpu, the_gpu, threads_of


def test_stages_never_use_more_threads_than_there_are_and_keep_their_order():
    slots, using, most, order, lock = Slots(3), 0, 0, [], threading.Lock()

    def stage(name: str, threads: int) -> None:
        nonlocal using, most
        with slots.take(threads):
            with lock:
                using += min(threads, 3)
                most = max(most, using)
                order.append(name)
            time.sleep(0.02)
            with lock:
                using -= min(threads, 3)

    running = []
    for index, threads in enumerate([2, 2, 1, 9, 1, 3, 1]):
        running.append(threading.Thread(target=stage, args=(str(index), threads)))
        running[-1].start()
        time.sleep(0.005)
    for one in running:
        one.join(10)
    assert most == 3 and slots.free == 3
    assert order == sorted(order)


def test_a_stage_counts_the_threads_of_its_section_else_the_common_ones(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(
        "threads: 2\nevaluate: {threads: 1}\nvalidate:\npretrain_ar: {threads: 3, processes: 2}\n"
    )
    names = ("evaluate@a", "validate", "report", "pretrain_ar")
    assert [threads_of(tmp_path, name) for name in names] == [1, 2, 2, 6]


def test_the_stage_that_most_others_wait_for_goes_first_even_when_a_narrower_one_would_fit():
    slots, order = Slots(2), []

    def stage(name: str, threads: int, priority: int) -> None:
        with slots.take(threads, priority):
            order.append(name)

    waiting = [("evaluate", 1, 1), ("tune", 2, 5), ("distill", 1, 3), ("control", 1, 3)]
    with slots.take(1):
        running = [threading.Thread(target=stage, args=arguments) for arguments in waiting]
        for one in running:
            one.start()
            time.sleep(0.05)
            assert len(order) <= 1  # `evaluate` had a slot to itself; `tune` needs both and holds the others back
    for one in running:
        one.join(10)
    assert order[:2] == ["evaluate", "tune"] and set(order[2:]) == {"distill", "control"}


def test_one_stage_at_a_time_has_the_gpu_and_a_stopped_one_waits_no_longer(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "params.yaml").write_text("gpu_stages: [evaluate, train]\n")
    assert [needs_gpu(tmp_path, name) for name in ("evaluate@a", "train", "report")] == [True, True, False]
    stopped, order = threading.Event(), []

    def stage() -> None:
        with the_gpu(stopped):
            order.append("second")

    with the_gpu(threading.Event()):
        other = threading.Thread(target=stage)
        other.start()
        time.sleep(0.3)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
    with the_gpu(threading.Event()):
        other = threading.Thread(target=stage)
        other.start()
        stopped.set()
        other.join(10)
    assert not other.is_alive()

"""The commands behind `make retrain`, `make promote` and `make rollback`: they need no server and leave none behind."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows import forks
from flows.news import look
from flows.server import prefect_server
from flows.stage_process import StageProcesses
from flows.start import alone, check_parallel, check_params, deliver, prepare, run_command
from tasks.promotion.settings import TARGETS, check_choice


def retrain_command() -> int:
    """0 when nothing is new or the challengers were judged (refused ones, too), 1 when something stopped it, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.retrain",
        description="Looks for new data, trains what it changes, and promotes challengers that are no worse.",
    )
    parser.add_argument("--max-parallel", type=int, default=2, help="stages that may run side by side (default 2)")
    arguments = parser.parse_args()

    def work(root: Path) -> int:
        check_parallel(arguments.max_parallel)
        check_params(root)
        with alone(root):
            prepare(root)
            return _retrain(root, arguments.max_parallel)

    return run_command("retrain", work)


def _retrain(root: Path, max_parallel: int) -> int:
    processes = StageProcesses(root)
    try:
        with forks.serving(root, forks.LOOKING):
            news = look(root, processes, lambda line: print(line, flush=True))
    except BaseException:
        processes.stop()
        raise
    if not news.is_any:
        print("\nretrain: nothing is new: no new data, all stages up to date, all challengers judged")
        return 0
    with forks.serving(root), prefect_server(root):
        from flows.retrain import as_parameter, retrain

        return _ended("retrain", lambda: retrain(max_parallel, as_parameter(news), return_state=True))


def promote_command() -> int:
    """0 when the challengers were judged, 1 when that failed, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.promote", description="Judges challengers against champions now."
    )
    parser.add_argument("--model", choices=TARGETS, help="registered name; otherwise all that retrain.models names")
    parser.add_argument("--version", help="judge this version of --model instead of its challenger")
    parser.add_argument("--force", metavar="REASON", help="promote without judging; the reason goes on record")
    arguments = parser.parse_args()

    def work(root: Path) -> int:
        check_choice(arguments.model, arguments.version, arguments.force)
        check_params(root)
        with alone(root):
            prepare(root)
            with prefect_server(root):
                from flows.promote import promote

                return _ended(
                    "promote", lambda: promote(arguments.model, arguments.version, arguments.force, return_state=True)
                )

    return run_command("promote", work)


def rollback_command() -> int:
    """0 when the champion before is back, 1 when there is none."""
    parser = argparse.ArgumentParser(prog="python -m flows.rollback", description="Puts the champion before this back.")
    parser.add_argument("--model", choices=TARGETS, default=TARGETS[0], help=f"registered name (default {TARGETS[0]})")
    parser.add_argument("--reason", default="", help="goes on record")
    arguments = parser.parse_args()

    def work(root: Path) -> int:
        prepare(root)
        with prefect_server(root):
            from flows.rollback import rollback

            return _ended("rollback", lambda: rollback(arguments.model, arguments.reason, return_state=True))

    return run_command("rollback", work)


def _ended(name: str, run: Callable[[], Any]) -> int:
    """Runs the flow, says how it ended, and waits until Prefect has been told everything."""
    try:
        state = run()
    finally:
        deliver()
    print(f"\n{name}: {state.message or state.name}")
    return 0 if state.is_completed() else 1

"""Programs about champions as Prefect tasks, and what they found as artifacts."""

import json
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.states import State

from flows.news import program
from flows.stage_process import StageProcesses
from flows.stage_task import StageFailed, retried_task

DRIFT_ALARM = "unmask.drift.alarm"


@retried_task
def run_program(name: str, processes: StageProcesses, *arguments: str) -> Any:
    """What `python -m tasks.NAME` writes with --json; every line it prints is a line of this task's log."""
    file = Path(".work") / f"{name}.json"
    (processes.root / file).unlink(missing_ok=True)
    outcome = processes.run_command(program(name, *arguments, "--json", str(file)), get_run_logger().info)
    if outcome.status == "failed":
        raise StageFailed(name, outcome)
    return json.loads((processes.root / file).read_text(encoding="utf-8"))


def why(state: State[Any]) -> str:
    """Why a task did not complete, in its program's words."""
    error = state.result(raise_on_failure=False) if state.is_final() else None
    return str(error) if isinstance(error, Exception) else str(state.message or state.name)


def show_drift(found: dict[str, Any]) -> None:
    """A table artifact with every distance, and an event for every alarm, on which an automation may act."""
    description = "\n".join(f"- **ALARM** {sentence}" for sentence in found["alarms"]) or found["note"] or "No alarm."
    create_table_artifact(key="drift", table=found["rows"] or [{"note": found["note"]}], description=description)
    for sentence in found["alarms"]:
        emit_event(DRIFT_ALARM, resource={"prefect.resource.id": "unmask.data"}, payload={"alarm": sentence})


def show_stop(reason: str) -> None:
    """The same artifact for a retrain that came to no judgement."""
    create_markdown_artifact(key="promotion", markdown=f"### Stopped, champions as they were\n- {reason}")


def show_decisions(entries: list[dict[str, Any]]) -> str:
    """A markdown artifact with numbers and reasons; returns one line that says the same."""
    create_markdown_artifact(key="promotion", markdown="\n\n".join(map(_described, entries)) or "Nothing to judge.")
    return "; ".join(f"{one['model']} version {one['to']} {one['action'].replace('_', ' ')}" for one in entries)


def _described(entry: dict[str, Any]) -> str:
    lines = [
        f"### {entry['model']}: version {entry['to']} {entry['action'].replace('_', ' ')} (before: {entry['from']})"
    ]
    lines += [f"- {reason}" for reason in entry.get("reasons", [])]
    if numbers := entry.get("numbers"):
        columns = list(next(iter(numbers.values())))
        lines += ["", f"| operating point | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [
            f"| {point} | " + " | ".join("–" if row[key] is None else f"{row[key]:.3f}" for key in columns) + " |"
            for point, row in numbers.items()
        ]
    return "\n".join(lines)

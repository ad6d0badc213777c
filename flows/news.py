"""Whether a retrain has anything to do: new data, stages out of date, or a challenger nobody has judged. No model is loaded."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows import forks
from flows.dvc_graph import changed_stages, read_graph, recorded_outs
from flows.stage_process import StageProcesses

WAITING = Path(".work/waiting.json")


@dataclass(frozen=True)
class News:
    """`stale`: something must run; `waiting`: names of models to be judged; `failed`: why the look itself did not succeed.

    `already` are the printed lines, by name, of the stages that looked.
    """

    stale: bool = False
    waiting: tuple[str, ...] = ()
    failed: str = ""
    already: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_any(self) -> bool:
        return self.stale or bool(self.waiting) or bool(self.failed)


def look(root: Path, processes: StageProcesses, on_line: Callable[[str], None]) -> News:
    """Runs the stages that look at the world outside, then asks DVC what is out of date and the registry who is to be judged."""
    graph = read_graph(root)
    already: dict[str, list[str]] = {}
    moved = False
    for name in (name for name, node in graph.items() if node.always and not node.upstream):
        before = recorded_outs(root, name)
        outcome = processes.run(name, on_line)
        if outcome.status == "failed":
            return News(failed=f"{name}: {outcome.reason}")
        already[name] = outcome.lines
        moved = moved or recorded_outs(root, name) != before
    if moved or changed_stages(root):
        return News(stale=True, already=already)
    asked = processes.run_command(program("promote", "--waiting", "--json", str(WAITING)), on_line)
    if asked.status == "failed":
        return News(failed=f"the registry: {asked.reason}")
    return News(waiting=tuple(each["model"] for each in json.loads((root / WAITING).read_text())), already=already)


def program(name: str, *arguments: str) -> list[str]:
    """The command of a program of tasks/ that is no stage."""
    return forks.command("-m", f"tasks.{name}", *arguments)

"""The pipeline's graph and what has changed, as DVC sees them: edges are written once, in dvc.yaml."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Node:
    """A stage: `upstream` are the stages whose outs it reads; `always`: it looks at the world outside each time."""

    name: str
    upstream: tuple[str, ...]
    always: bool


def read_graph(root: Path) -> dict[str, Node]:
    """Every stage by name, each after all the stages it depends on, otherwise in the order of dvc.yaml."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph = repo.index.graph  # its edges point from a stage to the stages it depends on
        waiting = {stage.name: _node(graph, stage) for stage in repo.index.stages}
    ordered: dict[str, Node] = {}
    while waiting:
        name = next(name for name, node in waiting.items() if all(upstream in ordered for upstream in node.upstream))
        ordered[name] = waiting.pop(name)
    return ordered


def descendants(graph: dict[str, Node], name: str) -> set[str]:
    """Every stage that needs this one, directly or not; `graph` is in running order."""
    found = {name}
    for other, node in graph.items():
        if found & set(node.upstream):
            found.add(other)
    return found - {name}


def _node(graph: Any, stage: Any) -> Node:
    upstream = sorted(other.name for other in graph.successors(stage))
    return Node(stage.name, tuple(upstream), stage.always_changed)


def span(graph: dict[str, Node], start: str | None, end: str | None) -> set[str]:
    """The stages from `start` on (it and what depends on it) and up to `end` (it and what it depends on); None: no bound.

    A name without `@` stands for all instances of a stage. ValueError for a name that the graph does not have.
    """
    chosen = set(graph)
    if start is not None:
        after = _named(graph, start)
        for name, node in graph.items():
            if after & set(node.upstream):
                after.add(name)
        chosen &= after
    if end is not None:
        before = _named(graph, end)
        for name in reversed(graph):
            if name in before:
                before |= set(graph[name].upstream)
        chosen &= before
    if not chosen:
        raise ValueError(f"no stage lies between start {start!r} and end {end!r}")
    return chosen


def _named(graph: dict[str, Node], name: str) -> set[str]:
    found = {each for each in graph if name in (each, each.partition("@")[0])}
    if not found:
        near = difflib.get_close_matches(name, graph, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no stage {name!r}; there are {', '.join(graph)}.{hint}")
    return found


def changed_stages(root: Path) -> set[str]:
    """Stages whose own command, deps, params or outs differ from dvc.lock (one status query; not their descendants).

    What is absent here counts as changed: a stage that another machine has made is looked at there or restored here.
    """
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.rwlock import RWLockFileCorruptedError

    try:
        with Repo(str(root)) as repo:
            status = repo.status()
    except (LockError, RWLockFileCorruptedError) as error:
        raise ValueError(f"another dvc command is at work in this checkout, wait for it to end: {error}") from error
    changed = {name for name, changes in status.items() if any(change != "always changed" for change in changes)}
    return {
        name.rpartition(":")[2] for name in changed
    }  # seen from another folder, names have the path of dvc.yaml in front


def recorded_outs(root: Path, stage: str) -> list[tuple[str, str | None]]:
    """What dvc.lock says that a stage has made: paths and hashes (None before its first run)."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        (found,) = (each for each in repo.index.stages if each.name == stage)
        return [(out.def_path, out.hash_info.value) for out in found.outs]


def stages_to_run(graph: dict[str, Node], changed: set[str]) -> list[str]:
    """The changed stages, whatever always runs, and everything that depends on a changed one, in running order."""
    stale: set[str] = set()
    for name, node in graph.items():
        if name in changed or stale & set(node.upstream):
            stale.add(name)
    return [name for name, node in graph.items() if name in stale or node.always]

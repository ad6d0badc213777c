"""The whole pipeline as a Prefect flow: python -m flows.pipeline (what `make run` calls), or a run of a deployment
pipeline/<preset>, whose stages go to workers.

The graph comes from DVC, and DVC decides what is up to date and keeps the results; Prefect orders, limits, retries and
shows. `dvc repro` does the same work without it.
"""

import sys

if __name__ == "__main__":  # prepares the process first: Prefect reads its environment while it is imported
    from flows.start import main

    sys.exit(main())

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.checkout import current_commit, prepare_checkout, preset_settings, uncommitted
from flows.dvc_graph import Node, changed_stages, descendants, read_graph, span, stages_to_run
from flows.slots import Slots, needs_gpu, threads_of
from flows.stage_process import Outcome, StageProcesses
from flows.stage_task import StageFailed, Stages, run_stage
from flows.start import alone
from flows.worker_stages import CHECKOUT, WorkerStages, bring_home, share
from model.training.pipeline_run import current_pipeline_run


@flow(name="pipeline", task_runner=ThreadPoolTaskRunner(max_workers=64), persist_result=False, log_prints=False)
def pipeline(
    max_parallel: int = 2,
    already: dict[str, list[str]] | None = None,
    preset: str | None = None,
    overrides: dict[str, Any] | None = None,
    start: str | None = None,
    end: str | None = None,
    on_workers: bool = False,
) -> State[Any]:
    """Brings every result up to date; independent stages run side by side while their threads together fit `max_parallel`.

    Without `preset`: here, with this checkout's params.yaml; `already` are the printed lines, by name, of stages that were run
    just before; `on_workers` sends the others to the queues, and what they make comes back here. With a preset: in a checkout of
    its own beside, stages on workers; `overrides` are dotted names of its parameters, `start` and `end` the first and last stage
    to look at.
    """
    root = Path.cwd()
    try:
        if preset is None and not on_workers:
            return _bring_up_to_date(
                root, read_graph(root), StageProcesses(root), max_parallel, already or {}, start, end
            )
        commit = current_commit(root)
        if preset is None:
            return _here_on_workers(root, commit, max_parallel, already or {}, start, end)
        if changed := uncommitted(root):
            get_run_logger().warning("not committed, so not part of this run: %s", ", ".join(changed))
        checkout = prepare_checkout(root, preset, commit)
        settings = preset_settings(checkout, preset, overrides or {})
        with alone(checkout):
            prepare_checkout(root, preset, commit, settings)
            graph = read_graph(checkout)
            stages = WorkerStages(checkout, preset, commit, settings, graph, flow_run.root_flow_run_id)
            return _bring_up_to_date(checkout, graph, stages, max_parallel, {}, start, end)
    except ValueError as error:
        return Failed(message=str(error))


def _here_on_workers(
    root: Path, commit: str, max_parallel: int, already: dict[str, list[str]], start: str | None, end: str | None
) -> State[Any]:
    """Gives workers what has been made here, and fetches what they make."""
    graph, settings = read_graph(root), (root / "params.yaml").read_text(encoding="utf-8")
    stale = set(stages_to_run(graph, changed_stages(root))) - set(already)
    share(root, [name for name in graph if name not in stale])
    stages = WorkerStages(root, CHECKOUT, commit, settings, graph, flow_run.root_flow_run_id)
    state = _bring_up_to_date(root, graph, stages, max_parallel, already, start, end)
    bring_home(root, sorted(stages.taken_over))
    return state


def _bring_up_to_date(
    root: Path,
    graph: dict[str, Node],
    stages: Stages,
    max_parallel: int,
    already: dict[str, list[str]],
    start: str | None,
    end: str | None,
) -> State[Any]:
    wanted = span(graph, start, end)
    slots = Slots(max_parallel)
    futures: dict[str, PrefectFuture[Any]] = {}
    elsewhere = isinstance(stages, WorkerStages)

    def submit(name: str) -> None:
        upstream = [futures[other] for other in graph[name].upstream if other in futures]
        named = run_stage.with_options(name=name, task_run_name=name)
        threads = threads_of(root, name)
        if elsewhere:
            # The stage's own run tries again. One that waits for a GPU, whose queue has a limit, takes no core meanwhile.
            named = named.with_options(retries=0)
            threads = 0 if needs_gpu(root, name) else threads
        priority = len(descendants(graph, name))
        futures[name] = named.submit(name, stages, slots, threads, priority, already.get(name), wait_for=upstream)

    try:
        for name in (name for name, node in graph.items() if node.always and not node.upstream and name in wanted):
            submit(name)
            futures[name].wait()
        if all(future.state.is_completed() for future in futures.values()):
            stale = stages_to_run(graph, changed_stages(root))
            due = [name for name in stale if name in wanted and name not in futures]
            if elsewhere and any(not graph[name].always for name in due):
                current_pipeline_run(root)  # opened before stages on two machines could each open one
            for name in due:
                submit(name)
        for future in futures.values():
            future.wait()
    except BaseException:  # a cancellation arrives here, in the main thread, as SystemExit or KeyboardInterrupt
        stages.stop()
        raise
    rows = [_row(name, futures.get(name)) for name in graph if name in wanted]
    create_table_artifact(key="stages", table=rows, description="What each stage did in this run")
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        return Failed(message="; ".join(f"{row['stage']}: {row['reason']}" for row in failed))
    return Completed(message=f"{sum(row['status'] == 'ran' for row in rows)} of {len(rows)} stages ran")


def _row(name: str, future: PrefectFuture[Any] | None) -> dict[str, Any]:
    if future is None:
        return {"stage": name, "status": "unchanged", "seconds": 0.0, "reason": ""}
    result = future.state.result(raise_on_failure=False) if future.state.is_final() else None
    outcome = result.outcome if isinstance(result, StageFailed) else result
    if not isinstance(outcome, Outcome):
        return {"stage": name, "status": "not run", "seconds": 0.0, "reason": "something it needs failed"}
    return {"stage": name, "status": outcome.status, "seconds": round(outcome.seconds, 1), "reason": outcome.reason}

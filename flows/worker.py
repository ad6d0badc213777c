"""A worker of this clone: python -m flows.worker [--queues cpu gpu default] [--limit N] (what `make worker` calls)

It asks the server that PREFECT_API_URL names for work and does it in this clone. Runs whose process died with a machine, a worker
or a power cut would be "running" for ever: every worker looks for such runs, and they begin again. A worker that cannot reach the
server ends its runs before others take them over (flows/lease.py).
"""

import argparse
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

if __name__ == "__main__":  # prepares the process first: Prefect reads its environment while it is imported
    from flows.start import prepare

    prepare(Path.cwd())
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "1")  # each query is a write to the server's database
    os.environ.setdefault("PREFECT_WORKER_HEARTBEAT_SECONDS", "60")

import asyncio
from datetime import datetime
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_WORKER_HEARTBEAT_SECONDS
from prefect.states import AwaitingRetry, Crashed
from prefect.types._datetime import now
from prefect.workers.process import ProcessWorker

from flows.engines import start
from flows.lease import begin_anew, hold, wait_for_server

POOL = "unmask"
STAGE_QUEUES = ("cpu", "gpu")
QUEUES = ("default", *STAGE_QUEUES)
LOOK_SECONDS = 5.0
MOST_STARTS = 10  # of one pipeline run


def main() -> int:
    """Works until SIGTERM; 2 when no server is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queues", nargs="+", default=list(QUEUES), choices=QUEUES)
    parser.add_argument("--limit", type=int, help="runs at a time; for a machine with one GPU: --queues gpu --limit 1")
    parser.add_argument(
        "--name", default="", help="one name a worker, the same after every start; default: host, clone, queues"
    )
    arguments = parser.parse_args()
    if not os.environ.get("PREFECT_API_URL"):
        print(
            "worker: set PREFECT_API_URL, for example http://127.0.0.1:4200/api (`make up` shows it)", file=sys.stderr
        )
        return 2
    clone = Path.cwd()
    os.environ["UNMASK_ROOT"] = str(clone)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    name = arguments.name or default_name(clone, arguments.queues)
    engines, command = start()
    wait_for_server(os.environ["PREFECT_API_URL"])
    hold(POOL, name, PREFECT_WORKER_HEARTBEAT_SECONDS.value())
    try:
        asyncio.run(_work(name, arguments.queues, arguments.limit, engines, command))
    except Exception as error:  # without it nobody ends its runs when the link breaks
        begin_anew(f"it failed: {error!r}")
    return 0


def default_name(clone: Path, queues: list[str]) -> str:
    """Tells workers apart and stays the same after a restart, so that the new one finds what the old one left."""
    parts = [socket.gethostname(), f"{zlib.crc32(str(clone).encode()):08x}"]
    return "-".join(parts + (sorted(queues) if set(queues) != set(QUEUES) else []))


async def _work(name: str, queues: list[str], limit: int | None, engines: int, command: str) -> None:
    worker = ProcessWorker(
        work_pool_name=POOL, work_queues=queues, name=name, limit=limit, create_pool_if_not_found=False
    )
    run_as_configured = worker.run

    async def run(flow_run: Any, configuration: Any, task_status: Any = None) -> Any:
        configuration.command = command
        return await run_as_configured(flow_run, configuration, task_status)

    worker.run = run  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as together:
        together.create_task(_tend(name, engines))
        together.create_task(worker.start())


async def _tend(name: str, engines: int) -> None:
    suspects: set[Any] = set()
    since = now("UTC")
    while True:
        if os.waitpid(engines, os.WNOHANG)[0]:
            begin_anew("the server of engines is gone")
        try:
            async with get_client() as client:
                lost = await lost_runs(client, name, since)
                for run in lost:
                    if run.id in suspects:  # seen twice: it was not just about to report its end
                        await begin_again(client, run)
                suspects = {run.id for run in lost}
        except Exception as error:  # the server is away: the worker goes on, so does this
            print(f"worker: cannot look for lost runs: {error}", file=sys.stderr, flush=True)
        await asyncio.sleep(LOOK_SECONDS)


async def lost_runs(client: PrefectClient, name: str, since: datetime) -> list[Any]:
    """Runs of the pool that are under way in name only: their worker is heard no more, or it is this one, up `since` then, and
    their process is gone or never came to be."""
    workers = await client.read_workers_for_work_pool(POOL)
    heard = {each.name for each in workers if each.status == "ONLINE"}
    under_way = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
    )
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    runs = await client.read_flow_runs(flow_run_filter=under_way, work_pool_filter=pool)
    return [run for run in runs if _is_lost(run, name, since, heard)]


def _is_lost(run: Any, name: str, since: datetime, heard: set[str]) -> bool:
    worker = run.labels.get("prefect.worker.name")
    if worker is None:
        return False
    if worker == name:
        return not _is_engine(run.infrastructure_pid) if run.infrastructure_pid else run.state.timestamp < since
    return worker not in heard


def _is_engine(process: str) -> bool:
    done = subprocess.run(["ps", "-ww", "-o", "args=", "-p", process], capture_output=True, text=True, check=False)
    return "engine" in done.stdout


async def begin_again(client: PrefectClient, run: Any) -> None:
    """A lost stage is reported as crashed: its pipeline submits it again. Any other lost run goes on from where DVC left off."""
    worker = run.labels.get("prefect.worker.name")
    print(f"worker: {run.name} was lost with its process on {worker}; it begins again", file=sys.stderr, flush=True)
    await client.set_flow_run_state(run.id, Crashed(message=f"its process on worker {worker} is gone"))
    if run.work_queue_name not in STAGE_QUEUES and run.run_count < MOST_STARTS:
        await client.set_flow_run_state(run.id, AwaitingRetry(message="lost with its worker, begins again"))


if __name__ == "__main__":
    sys.exit(main())

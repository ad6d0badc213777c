"""Creates the work pool, its queues and their limits where they are missing, and deploys prefect.yaml: python -m flows.deploy

Needs PREFECT_API_URL. A pool of that name that exists already (of type kubernetes or slurm, say) is left as it is.
"""

import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    from flows.start import prepare

    prepare(Path.cwd())

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.worker import POOL

LIMITS = {"cpu": None, "gpu": 1}  # runs at a time, all workers together; with a second GPU worker: raise it by one


def main() -> int:
    """0 when everything is deployed, 1 when the server does not answer or refuses it, 2 when none is named."""
    if not os.environ.get("PREFECT_API_URL"):
        print(
            "deploy: set PREFECT_API_URL, for example http://127.0.0.1:4200/api (`make up` deploys, too)",
            file=sys.stderr,
        )
        return 2
    try:
        with get_client(sync_client=True) as client:
            make_pool(client)
    except httpx.TransportError as error:
        print(f"deploy: {os.environ['PREFECT_API_URL']} does not answer: {error}", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        print(f"deploy: {done.stdout}{done.stderr}", file=sys.stderr)
    return done.returncode


def make_pool(client: SyncPrefectClient) -> None:
    """The pool and its queues; what a person has changed since stays."""
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template()))
    known = {queue.name for queue in client.read_work_queues(work_pool_name=POOL)}
    for name, limit in LIMITS.items():
        if name not in known:
            client.create_work_queue(name=name, work_pool_name=POOL, concurrency_limit=limit)


def template() -> dict:
    """Prefect's template for processes with two other defaults: the plain engine starts a second sooner than the one that
    prepares workspaces, and a run whose output nobody copies outlives its worker."""
    found = ProcessWorker.get_default_base_job_template()
    properties = found["variables"]["properties"]
    properties["command"]["default"] = "python -m prefect.engine"
    properties["stream_output"]["default"] = False
    return found


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    sys.exit(main())

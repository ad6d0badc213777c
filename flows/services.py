"""This checkout's servers and worker, which outlive the terminal: python -m flows.services up|down (`make up`, `make down`)

Prefect, MLflow and one worker, on loopback unless told otherwise, each kept running by flows/keeper.py, with a log and a note of
its process in .work/services. `up` again starts what is missing; `down` ends exactly what `up` has started.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.server import HOST, KEEPER, READY_SECONDS, SERVICES, free_port, is_kept
from flows.start import prepare, root_of_repository
from model.atomic import locked, write_atomically
from model.training.tracking import local_store, open_store

PORTS = {"prefect": 4200, "mlflow": 5000}
EVERYWHERE = ("0.0.0.0", "::")
HEALTH = {"prefect": "/health", "mlflow": "/health"}
CLIENT_SETTINGS = Path("prefect.toml")  # what the `prefect` command reads in this folder
ENDED = "keeper: "  # a line of flows/keeper.py
END_SECONDS = 40.0  # a stage has 15 to end by itself
# Read by Prefect's server: leases of a deployment's limit outlive a restart, who waits for one looks every two seconds, and runs
# that ended 90 days ago are forgotten with their logs (decisions about models are kept elsewhere: tasks/promotion/decisions.py).
SERVER_SETTINGS = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
}


@dataclass(frozen=True)
class Choices:
    """Where the servers listen; where MLflow keeps runs (`store`, a database URL) and files (`artifacts`, a folder or URL)."""

    host: str = HOST
    store: str = ""
    artifacts: str = ""
    worker: bool = True


def main() -> int:
    """0 when all is up (or down), 1 when something did not start, 2 for wrong use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["up", "down"])
    parser.add_argument("--host", default=HOST, help="address to listen on; nobody is asked for a password there")
    parser.add_argument(
        "--store", default="", help="MLflow's database, postgresql://USER@HOST/NAME; default: SQLite in mlruns/"
    )
    parser.add_argument(
        "--artifacts",
        default="",
        help="where MLflow's server keeps files for clients on any machine: a folder, s3://...",
    )
    parser.add_argument("--no-worker", action="store_true", help="servers only")
    arguments = parser.parse_args()
    try:
        root = root_of_repository()
        prepare(root)
        (root / SERVICES).mkdir(parents=True, exist_ok=True)
        with locked(root / SERVICES / "lock"):
            if arguments.what == "down":
                return down(root)
            with locked(
                Path(tempfile.gettempdir(), f"unmask-up-{os.getuid()}.lock")
            ):  # two clones would choose one port
                return up(root, Choices(arguments.host, arguments.store, arguments.artifacts, not arguments.no_worker))
    except (ValueError, OSError) as error:
        print(f"{arguments.what}: {error}", file=sys.stderr)
        return 1


def up(root: Path, choices: Choices) -> int:
    """Starts what is not running, waits until it answers, deploys, and says where the pages are."""
    _check_store(choices.store)
    for name, start in (("prefect", _prefect), ("mlflow", _mlflow)):
        if name not in _kept(root):
            start(root, choices)
    states = _kept(root)
    for name, path in HEALTH.items():
        _wait_until_healthy(root, name, states[name]["address"] + path)
    os.environ["PREFECT_API_URL"] = states["prefect"]["address"]
    os.environ["MLFLOW_TRACKING_URI"] = states["mlflow"]["address"]
    write_atomically(
        root / CLIENT_SETTINGS, f'# Written by `make up`.\n[api]\nurl = "{states["prefect"]["address"]}"\n'
    )
    open_store(root)  # makes the experiment: several stages at once should not have to
    if subprocess.run([sys.executable, "-m", "flows.deploy"], check=False, stdin=subprocess.DEVNULL).returncode:
        return 1
    if choices.worker:
        if "worker" not in states:
            _keep(root, "worker", [sys.executable, "-m", "flows.worker"], "")
        _wait_for_worker(root)
    prefect = states["prefect"]["address"].removesuffix("/api")
    print(f"up: Prefect  {prefect}/deployments\nup: MLflow   {states['mlflow']['address']}")
    print("up: now: prefect deployment run 'pipeline/tiny' --watch")
    print("up: make down ends all of them; a run that is under way goes on after the next make up")
    return 0


def down(root: Path) -> int:
    """Ends worker and servers, in this order."""
    states = _kept(root)
    for name in ("worker", "prefect", "mlflow"):
        if name in states:
            _end(states[name]["pid"], root / SERVICES / f"{name}.log")
            print(f"down: {name} has ended")
        (root / SERVICES / f"{name}.json").unlink(missing_ok=True)
    (root / CLIENT_SETTINGS).unlink(missing_ok=True)
    if not states:
        print("down: nothing of this checkout was up")
    return 0


def _prefect(root: Path, choices: Choices) -> None:
    port = free_port(PORTS["prefect"])
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", choices.host, "--port", str(port)]
    seen_from = socket.getfqdn() if choices.host in EVERYWHERE else choices.host
    settings = SERVER_SETTINGS | {"PREFECT_UI_API_URL": f"http://{seen_from}:{port}/api"}
    _keep(root, "prefect", command, f"http://{_reached_at(choices.host)}:{port}/api", settings)


def _mlflow(root: Path, choices: Choices) -> None:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if not choices.store and not choices.artifacts:
        open_store(root)  # makes the file as runs without a server do: whole, in one rename
    (root / "mlruns").mkdir(exist_ok=True)
    port = free_port(PORTS["mlflow"])
    command = [sys.executable, "-m", "mlflow", "server", "--host", choices.host, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--no-access-log"]
    command += ["--allowed-hosts", "*"] if choices.host != HOST else []  # else it answers to loopback's names alone
    command += ["--backend-store-uri", choices.store or local_store(root)]
    command += ["--artifacts-destination", choices.artifacts or (root / "mlruns/artifacts").as_uri()]
    _keep(root, "mlflow", command, f"http://{_reached_at(choices.host)}:{port}")


def _check_store(store: str) -> None:
    if store and not store.startswith("postgresql"):
        raise ValueError(f"the store {store!r} is not a PostgreSQL URL: postgresql://USER:PASSWORD@HOST:5432/DATABASE")
    if store:
        try:
            import psycopg2  # noqa: F401
        except ImportError:
            raise ValueError("PostgreSQL needs its driver: pip install psycopg2-binary") from None


def _reached_at(host: str) -> str:
    return HOST if host in EVERYWHERE else host


def _keep(root: Path, name: str, command: list[str], address: str, settings: dict[str, str] | None = None) -> None:
    folder = (root / SERVICES).resolve()
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", str(KEEPER), str(folder / f"{name}.log"), *command],
        cwd=root,
        env=os.environ | (settings or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    write_atomically(folder / f"{name}.json", json.dumps({"pid": process.pid, "address": address}))


def _kept(root: Path) -> dict[str, dict[str, Any]]:
    """What `up` has started and is still there, by name."""
    folder = (root / SERVICES).resolve()
    states = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")}
    return {name: state for name, state in states.items() if is_kept(state["pid"], folder / f"{name}.log")}


def _wait_until_healthy(root: Path, name: str, url: str) -> None:
    log, deadline = root / SERVICES / f"{name}.log", time.monotonic() + READY_SECONDS
    begun = log.read_text(errors="replace").count(ENDED) if log.is_file() else 0
    while time.monotonic() < deadline and name in _kept(root):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
        if log.is_file() and log.read_text(errors="replace").count(ENDED) > begun + 1:
            break  # it starts and dies, and the keeper goes on trying
    raise ValueError(f"{name} did not start; its last words are in {SERVICES / name}.log")


def _wait_for_worker(root: Path) -> None:
    from flows.worker import POOL, QUEUES, default_name

    url = f"{os.environ['PREFECT_API_URL']}/work_pools/{POOL}/workers/filter"
    name, deadline = default_name(root, list(QUEUES)), time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and "worker" in _kept(root):
        request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            if any(each["name"] == name and each["status"] == "ONLINE" for each in json.load(answer)):
                return
        time.sleep(0.3)
    raise ValueError(f"the worker did not start; its last words are in {SERVICES}/worker.log")


def _end(process: int, log: Path) -> None:
    os.kill(process, 15)
    deadline = time.monotonic() + END_SECONDS
    while is_kept(process, log):
        if time.monotonic() > deadline:
            os.killpg(process, 9)  # its guard sees that and ends the rest
            return
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())

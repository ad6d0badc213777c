"""Servers on this machine that end with whoever started them: Prefect's for one run, the pages for `make ui`."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"
GUARD, KEEPER = Path(__file__).with_name("guard.py"), Path(__file__).with_name("keeper.py")
SERVICES = Path(".work/services")
# Of Prefect's server for one run: it has no schedules, workers or limits to look after, and looking costs 1 % of a core.
NOT_NEEDED = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP", "REPOSSESSOR")
READY_SECONDS = 600  # some seconds on an idle machine; a first start also makes the database


@contextmanager
def prefect_server(root: Path) -> Iterator[str]:
    """The API's address: of a Prefect server for as long as the body runs, or of the one that PREFECT_API_URL names.

    Prefect's own temporary server would outlive a killed run, and hear a Ctrl-C before the run can report its end to it.
    """
    named = os.environ.get("PREFECT_API_URL") or running(root).get("PREFECT_API_URL")
    if named:
        os.environ["PREFECT_API_URL"] = named
        yield named
        return
    port = free_port(0)
    log = root / ".prefect" / "server.log"
    log.parent.mkdir(exist_ok=True)
    command = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
    address = f"http://{HOST}:{port}/api"
    process = start_module(command, log, {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in NOT_NEEDED})
    try:
        if not wait_until_healthy(f"{address}/health", process):
            raise ValueError(f"Prefect's server did not start; its last words are in {log}")
        os.environ["PREFECT_API_URL"] = address
        yield address
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        process.terminate()
        process.wait()


def running(root: Path) -> dict[str, str]:
    """Addresses of the servers that `make up` keeps running here, by the variable that names each to its clients."""
    found = {}
    for variable, name in (("PREFECT_API_URL", "prefect"), ("MLFLOW_TRACKING_URI", "mlflow")):
        file = root / SERVICES / f"{name}.json"
        state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if state and is_kept(state["pid"], root / SERVICES / f"{name}.log"):
            found[variable] = state["address"]
    return found


def is_kept(process: int, log: Path) -> bool:
    """True when the process is the keeper (flows/keeper.py) that writes this log, and not another with a used number."""
    done = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(process)], capture_output=True, text=True, check=False)
    return f"{KEEPER} {log} " in done.stdout


def free_port(preferred: int) -> int:
    """The preferred port of this machine when nobody listens there, else one that the system gives."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {HOST}")


def start_module(command: list[str], log: Path, settings: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
    """`python -m COMMAND` under the guard, in a session of its own, its output in `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-S", "-E", str(GUARD), sys.executable, "-m", *command],
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> bool:
    """True as soon as `url` answers, False when the process ends or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return True
        except OSError:
            time.sleep(0.2)
    return False

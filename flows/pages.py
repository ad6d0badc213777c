"""Shows what was made: python -m flows.pages (what `make ui` calls) serves the MLflow and Prefect pages until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from flows.start import prepare

HOST = "127.0.0.1"
READY_SECONDS = 180
GUARD = Path(__file__).with_name("guard.py")


def main() -> int:
    """0 after Ctrl-C, 1 when one of the two could not be started or ended by itself."""
    root = Path.cwd()
    prepare(root)
    store = root / "mlruns" / "mlflow.db"
    if not store.is_file():
        print("ui: there are no runs yet: make run", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    mlflow_port, prefect_port = free_port(5000), free_port(4200)
    uri = f"sqlite:///{store}"
    mlflow = ["mlflow", "ui", "--backend-store-uri", uri, "--host", HOST, "--port", str(mlflow_port), "--workers", "1"]
    prefect = ["prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)]
    os.environ["PREFECT_UI_API_URL"] = f"http://{HOST}:{prefect_port}/api"
    pages = {
        f"http://{HOST}:{mlflow_port}": (f"http://{HOST}:{mlflow_port}/health", _start(mlflow)),
        f"http://{HOST}:{prefect_port}": (f"http://{HOST}:{prefect_port}/api/health", _start(prefect)),
    }
    try:
        for (page, (health, process)), title in zip(pages.items(), ("MLflow", "Prefect"), strict=True):
            if not _answers(health, process):
                print(f"ui: {title} did not start", file=sys.stderr)
                return 1
            print(f"ui: {title:8}{page}", flush=True)
        print("ui: Ctrl-C ends both", flush=True)
        while all(process.poll() is None for _, process in pages.values()):
            time.sleep(0.5)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for _, process in pages.values():
            process.terminate()
        for _, process in pages.values():
            process.wait()


def free_port(preferred: int) -> int:
    """The preferred port of this machine when nobody listens there, else one that the system gives."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port")


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    guarded = [sys.executable, "-S", "-E", str(GUARD), sys.executable, "-m", *command]
    return subprocess.Popen(guarded, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def _answers(health: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=2):
                return True
        except OSError:
            time.sleep(0.3)
    return False


if __name__ == "__main__":
    sys.exit(main())

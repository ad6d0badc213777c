"""Shows what was made: python -m flows.pages (what `make ui` calls) serves the MLflow and Prefect pages until Ctrl-C."""

import os
import signal
import sys
import time
from pathlib import Path

from flows.server import HOST, free_port, running, start_module, wait_until_healthy
from flows.start import prepare


def main() -> int:
    """0 after Ctrl-C, 1 when one of the two could not be started or ended by itself."""
    root = Path.cwd()
    if pages := running(root):
        print("\n".join(f"ui: {address.removesuffix('/api')} is up already (make up)" for address in pages.values()))
        return 0
    prepare(root)
    store = root / "mlruns" / "mlflow.db"
    if not store.is_file():
        print("ui: there are no runs yet: make run", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ports = {"mlflow": free_port(5000), "prefect": free_port(4200)}
    os.environ["PREFECT_UI_API_URL"] = f"http://{HOST}:{ports['prefect']}/api"
    commands = {
        "mlflow": ["ui", "--backend-store-uri", f"sqlite:///{store}", "--workers", "1"],
        "prefect": ["server", "start"],
    }
    health = {"mlflow": "health", "prefect": "api/health"}
    logs = root / ".work"
    logs.mkdir(exist_ok=True)
    processes = {
        name: start_module([name, *command, "--host", HOST, "--port", str(ports[name])], logs / f"{name}-page.log")
        for name, command in commands.items()
    }
    try:
        for name, process in processes.items():
            page = f"http://{HOST}:{ports[name]}"
            if not wait_until_healthy(f"{page}/{health[name]}", process):
                print(f"ui: {name} did not start; see {logs / name}-page.log", file=sys.stderr)
                return 1
            print(f"ui: {name:8}{page}", flush=True)
        print("ui: Ctrl-C ends both", flush=True)
        while all(process.poll() is None for process in processes.values()):
            time.sleep(0.5)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait()


if __name__ == "__main__":
    sys.exit(main())

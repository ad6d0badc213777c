"""Servers and workers of a scratch checkout, with a small pipeline that really trains, for the tests of operations."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import Checkout

SERVICES = ("-m", "flows.services")
EDGES = {"download": [], "train": ["download"], "report": ["train"], "register": ["report"]}
TRAINING = """
import hashlib, json, sys, time
sys.path[:0] = ["tests/model/training"]
from pathlib import Path
from tasks.stage import run_stage
from training_example import fingerprint, trainer, write_rows


def main(stage):
    (stage.root / "log.txt").open("a").write(f"{stage.address} begins\\n")
    rows = Path(stage.work / "rows")
    if not rows.exists():
        write_rows(rows)
    run = trainer(stage.work / "run", rows, steps=stage.section["steps"], checkpoint_every_steps=5)
    run.tracker = stage.tracker
    run.config.__dict__["log_every_steps"] = 1
    step = run._step

    def slow(batch):
        time.sleep(stage.section["seconds"])
        return step(batch)

    run._step = slow
    run.run()
    made = stage.work / "made"
    made.mkdir()
    (made / "fingerprint").write_text(fingerprint(run))
    stage.publish(made, "data/models/train")


if __name__ == "__main__":
    run_stage(main, "train")
"""


class Fleet:
    """A clone whose preset `mini` is deployed on servers of its own."""

    def __init__(self, clone: Checkout, remote: Path | None = None):
        self.clone, self.root = clone, clone.root
        clone.pipeline(EDGES)
        (self.root / "tasks/train.py").write_text(TRAINING.lstrip())
        if remote is not None:
            config = self.root / ".dvc/config"
            text = config.read_text().replace("[core]\n", "[core]\n    remote = shared\n")
            config.write_text(f"{text}['remote \"shared\"']\n    url = {remote}\n")
        for preset in (self.root / "presets").glob("*.yaml"):
            preset.unlink()
        self.preset(steps=40, seconds=0.0)
        declared = yaml.safe_load((self.root / "prefect.yaml").read_text())
        pipelines = [each for each in declared["deployments"] if each["entrypoint"].startswith("flows/pipeline")]
        stages = [each for each in declared["deployments"] if each["entrypoint"].startswith("flows/stage")]
        declared["deployments"] = [pipelines[0] | {"name": "mini", "parameters": {"preset": "mini"}}, *stages]
        (self.root / "prefect.yaml").write_text(yaml.safe_dump(declared))
        self.commit()

    def preset(self, **train: Any) -> None:
        """Settings of the preset; `train` is its training stage's section."""
        values = {"preset": "mini", "seed": 0, "threads": 1, "gpu_stages": ["train"]} | {name: {} for name in EDGES}
        (self.root / "presets/mini.yaml").write_text(yaml.safe_dump(values | {"train": train}))

    def commit(self) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        for command in (["add", "-A"], [*identity, "commit", "-q", "-m", "mini"]):
            subprocess.run(["git", *command], cwd=self.root, check=True, capture_output=True)

    @property
    def checkout(self) -> Checkout:
        return Checkout(self.root / ".work/checkouts/mini")

    def up(self, *options: str) -> str:
        done = self.clone.python(*SERVICES, "up", *options)
        assert done.returncode == 0, done.stdout + self.logs()
        return done.stdout

    def down(self) -> None:
        self.clone.python(*SERVICES, "down")

    def service(self, name: str) -> dict[str, Any]:
        return json.loads((self.root / f".work/services/{name}.json").read_text())

    def logs(self) -> str:
        files = sorted((self.root / ".work/services").glob("*.log"))
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def processes(self, name: str) -> list[int]:
        """The service's processes, its keeper first."""
        found = [int(self.service(name)["pid"])]
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
        parents = dict(zip(map(int, listed[::2]), map(int, listed[1::2]), strict=True))
        for one in found:
            found += [child for child, parent in parents.items() if parent == one]
        return found

    def kill(self, name: str, keep: int = 1) -> None:
        """SIGKILL to all of a service's processes but the first `keep` (its keeper)."""
        for process in self.processes(name)[keep:]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def prefect(self, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """The `prefect` command as a person types it in the clone: nothing but prefect.toml tells it where the server is."""
        return self.clone.python("-m", "prefect", *arguments, timeout=timeout, DO_NOT_TRACK="1")

    def start_run(self, *arguments: str) -> str:
        """A run of pipeline/mini; its id."""
        done = self.prefect("deployment", "run", "pipeline/mini", *arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout.partition("UUID: ")[2].split()[0]

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        import urllib.request

        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.service('prefect')['address']}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def wait_for_end(self, run: str, seconds: float = 1800) -> dict[str, Any]:
        """The state in which a run ended."""

        def ended() -> Any:
            with suppress(OSError):
                state = self.api(f"/flow_runs/{run}")["state"]
                return state if state["type"] in ("COMPLETED", "FAILED", "CANCELLED") else None

        return self.wait(ended, seconds)

    def wait(self, condition: Callable[[], Any], seconds: float = 1800) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "waited in vain\n" + self.logs()
            time.sleep(0.1)
        return found

    def checkpoints(self) -> list[Path]:
        return sorted((self.checkout.root / ".work/train").glob("*/run/step-*/progress.json"))

    def uninterrupted(self, folder: Path, steps: int) -> str:
        """What the training program makes when nothing happens to it."""
        shutil.copytree(self.root / "tests", folder / "tests")
        rows = folder / "rows"
        program = (
            "import sys; sys.path[:0] = ['tests/model/training', sys.argv[1]]\n"
            "from pathlib import Path; from training_example import *\n"
            "torch.set_num_threads(1); write_rows(Path(sys.argv[2]))\n"
            f"run = trainer(Path(sys.argv[2]).with_name('run'), Path(sys.argv[2]), steps={steps}, checkpoint_every_steps=5)\n"
            "run.config.__dict__['log_every_steps'] = 1; run.run(); print(fingerprint(run))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(self.root), str(rows)],
            cwd=folder, env=self.clone.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

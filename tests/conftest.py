"""Scratch checkouts: copies of this repository with a git history of their own, where real stages can run and nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

STAGE_PROGRAM = '''
"""A stand-in for a stage: draws its loss curve, may dawdle, fail or die, and writes what it was told."""
import json, os, sys, time
from tasks.stage import run_stage

NAME, OUT = {name!r}, {out!r}


def main(stage):
    section = stage.section
    begun = stage.work / "begun"
    tries = int(begun.read_text()) if begun.exists() else 0
    begun.write_text(str(tries + 1))
    (stage.root / "log.txt").open("a").write(f"{{stage.address}} {{os.getpid()}}\\n")
    print(f"{{NAME}} says hello", flush=True)
    for step in range(section.get("steps", 3)):
        stage.tracker.log_metrics({{"train/loss": 1.0 / (step + 1)}}, step=step)
        stage.tracker.flush()
        time.sleep(section.get("seconds", 0.0))
    if section.get("die") and tries < section["die"]:
        os.kill(os.getpid(), 9)
    if "wrong" in section:
        raise ValueError("wrong is " + repr(section["wrong"]) + "; leave it out")
    if OUT:
        made = stage.work / "made"
        made.mkdir(exist_ok=True)
        (made / "manifest.json").write_text(json.dumps([NAME, stage.seed, section.get("text", "")]))
        stage.publish(made, OUT)


if __name__ == "__main__":
    run_stage(main, NAME)
'''


@pytest.fixture(autouse=True)
def own_store() -> Iterator[None]:
    """`mlflow.set_tracking_uri` writes the environment: a test's store is not the next one's."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    yield
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(before)


@dataclass(frozen=True)
class Checkout:
    """A scratch copy of the repository and ways to run commands in it."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """This process' environment without what belongs to the user's own runs."""
        own = ("PREFECT_", "MLFLOW_", "DVC_", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        return kept | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def python(self, *arguments: str, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS` in the checkout, output and errors together in `stdout`."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """The same without waiting, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
        )

    def runs_of(self, stage: str) -> int:
        """How often a stand-in stage's process has begun."""
        log = self.root / "log.txt"
        return sum(line.split()[0] == stage for line in log.read_text().splitlines()) if log.is_file() else 0

    def pipeline(self, edges: dict[str, list[str]], sections: dict[str, str] | None = None) -> None:
        """Writes stand-in stages: `edges` maps a stage to those it reads; `download` and `register` always run."""
        lines = ["stages:"]
        for name, upstream in edges.items():
            out = {"download": "data/raw", "register": ""}.get(name, f"data/models/{name}")
            program = self.root / "tasks" / f"{name}.py"
            program.write_text(STAGE_PROGRAM.format(name=name, out=out).lstrip())
            deps = [
                f"tasks/{name}.py",
                *("data/raw" if each == "download" else f"data/models/{each}" for each in upstream),
            ]
            lines += [f"  {name}:", f"    cmd: python -m tasks.{name}", f"    deps: [{', '.join(deps)}]"]
            lines += [f"    params: [seed, {name}]"]
            lines += [f"    outs: [{out}]"] if out and name != "download" else []
            lines += ["    outs: [{data/raw: {persist: true}}]"] if name == "download" else []
            lines += ["    always_changed: true"] if name in ("download", "register") else []
        (self.root / "dvc.yaml").write_text("\n".join(lines) + "\n")
        self.settings(edges, sections)

    def settings(self, names: dict[str, list[str]], sections: dict[str, str] | None = None) -> None:
        """Writes params.yaml with a section per stage, `{}` where none is given."""
        given = sections or {}
        body = "\n".join(f"{name}: {given.get(name, '{}')}" for name in names)
        (self.root / "params.yaml").write_text(f"preset: mini\nseed: 0\nthreads: 1\n{body}\n")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return copy_of_this_repository(tmp_path)


def copy_of_this_repository(folder: Path) -> Checkout:
    """A copy of every file of this repository that git tracks or would track, with one commit, in folder/checkout."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    root = folder / "checkout"
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "scratch"]):
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)
    return Checkout(root)

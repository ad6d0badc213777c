"""The deployments `retrain`, `rollback` and `promote` on the servers and the worker of `make up`."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from flows.retrain import NOTHING_NEW
from tasks.promotion import decisions
from tests.conftest import Checkout
from tests.flows.test_retrain import BOOKS, LEARN, NEWS, PARAMS, PIPELINE, TARGET, Plant

pytestmark = pytest.mark.slow


class Deployed(Plant):
    """A plant whose flows are runs of deployments."""

    def deploy(self) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        for command in (["add", "-A"], [*identity, "commit", "-qm", "mini"]):
            subprocess.run(["git", *command], cwd=self.root, check=True)
        done = self.checkout.python("-m", "flows.services", "up")
        assert done.returncode == 0, done.stdout

    def watch(self, name: str, *parameters: str) -> str:
        """Runs a deployment to its end; the message of its last state."""
        arguments = [part for one in parameters for part in ("--param", one)]
        done = self.checkout.python("-m", "prefect", "deployment", "run", f"{name}/{name}", "--watch", *arguments)
        run = done.stdout.partition("UUID: ")[2].split()[0]
        return str(self.ask(f"flow_runs/{run}")["state"]["message"])

    def ask(self, path: str, body: bytes | None = None) -> object:
        import urllib.request

        address = json.loads((self.root / ".work/services/prefect.json").read_text())["address"]
        request = urllib.request.Request(f"{address}/{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture
def plant(checkout: Checkout) -> Iterator[Deployed]:
    root = checkout.root
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text(PARAMS)
    (root / "tasks/learn.py").write_text(LEARN.lstrip().replace("\\\\n", "\\n"))
    plant = Deployed(checkout, "")
    try:
        plant.deploy()
        yield plant
    finally:
        checkout.python("-m", "flows.services", "down")


def test_a_deployed_retrain_sends_its_stages_to_the_queues_and_champions_move_by_deployment(plant: Deployed) -> None:
    root, elsewhere = plant.root, Checkout(plant.root / ".work/checkouts/retrain")
    plant.drop("first.jsonl", *BOOKS)
    assert plant.watch("retrain") == "no challenger was waiting"
    assert plant.champion == ("1", "1")
    plant.drop("second.jsonl", *NEWS)
    assert "unmask-target version 2 promoted" in plant.watch("retrain")
    assert plant.champion == ("2", "2")
    assert (plant.checkout.runs_of("learn"), elsewhere.runs_of("learn")) == (0, 2)
    queues = [(run["name"], run["work_queue_name"]) for run in plant.ask("flow_runs/filter", b"{}")]
    assert queues.count(("learn", "cpu")) == queues.count(("register", "cpu")) == 2
    assert (root / "data/models/finetune_diffusion/model.safetensors").is_file()  # what workers have made is here, too
    assert plant.watch("retrain") == NOTHING_NEW

    assert "rolled back" in plant.watch("rollback", "reason=the answers got short")
    assert plant.champion == ("1", "1")
    assert decisions.read(root)[-1]["reasons"] == ["the answers got short"]
    assert "its input or its parameters are wrong" in plant.watch("rollback")  # it replaced none
    assert plant.champion == ("1", "1")
    assert "version 2 promoted" in plant.watch(
        "promote", f"model={TARGET}", 'version="2"', "force=the answers are fine"
    )
    assert plant.champion == ("2", "2")
    assert decisions.read(root)[-1]["reasons"] == ["a person insisted: the answers are fine"]

"""A serving machine that has nothing but a registry behind a real MLflow server, which keeps the files as well."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from flows.server import free_port, wait_until_healthy
from model.apps.answer import load_answerer
from tasks import serve
from tests.tasks.serving.conftest import NAME, SETTINGS, Server, serving, wait_until, write_checkpoint

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


@dataclass
class Registry:
    """An MLflow server and the machine that trains for it."""

    address: str
    process: subprocess.Popen
    maker: Path

    def publish(self, seed: int) -> tuple[str, str]:
        """A champion whose files go through the server; its version, and what it answers."""
        client, folder = MlflowClient(self.address), self.maker / f"versions/{seed}"
        write_checkpoint(self.maker, folder / "artifacts/checkpoint", seed)
        run = client.create_run(client.create_experiment(f"made {seed}"))
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        os.environ["MLFLOW_TRACKING_URI"] = self.address  # where the client's uploads go
        client.log_artifacts(run.info.run_id, str(folder), "model")
        if not client.search_registered_models(f"name = '{NAME}'"):
            client.create_registered_model(NAME)
        version = client.create_model_version(NAME, f"{run.info.artifact_uri}/model", run.info.run_id).version
        client.set_registered_model_alias(NAME, "champion", version)
        answer = load_answerer(folder / "artifacts/checkpoint", SETTINGS["policy"], 40)
        return str(version), answer([QUESTION])[0]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    port = free_port(0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path / 'server.db'}",
        "--artifacts-destination",
        str(tmp_path / "kept"),
    ]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=settings | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
        )
    try:
        assert wait_until_healthy(f"http://127.0.0.1:{port}/health", process), (tmp_path / "server.log").read_text()
        (tmp_path / "maker").mkdir()
        yield Registry(f"http://127.0.0.1:{port}", process, tmp_path / "maker")
    finally:
        process.terminate()
        process.wait(30)


def ask(server: Server) -> tuple[str, str]:
    answer = server.client.chat.completions.create(model=NAME, messages=QUESTION, max_tokens=40)
    return answer.model, answer.choices[0].message.content


@pytest.mark.slow
def test_the_champion_of_a_remote_registry_is_fetched_served_replaced_and_outlives_the_registry(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = tmp_path / "machine"
    machine.mkdir()
    first, expected = registry.publish(1)
    with serving(machine, {"MLFLOW_TRACKING_URI": registry.address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}) as server:
        assert ask(server) == (f"{NAME}/{first}", expected)
        assert len(list((machine / ".work/registered").glob("*/artifacts/checkpoint/model.safetensors"))) == 1
        assert not (machine / "mlruns").exists()
        second, other = registry.publish(2)
        assert other != expected
        wait_until(lambda: server.get("/health").json()["version"] == second)
        assert ask(server) == (f"{NAME}/{second}", other)
        registry.process.terminate()
        registry.process.wait(30)
        server.wait("the model that answers stays")
        assert ask(server) == (f"{NAME}/{second}", other)
    monkeypatch.chdir(machine)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    capsys.readouterr()
    assert serve.main([]) == serve.BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("serve: ") and registry.address in error and "Traceback" not in error

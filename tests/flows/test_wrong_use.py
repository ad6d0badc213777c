"""What a person on call may get wrong: one sentence, an exit status that is not 0, and no traceback; nothing is changed by it."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.start import run_command
from tests.conftest import Checkout

TARGET = "unmask-target"


def away() -> str:
    """The address of a server that does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", ".work"), "Permission denied: '.work'"),
        (ConnectionError("http://a:1 does not answer"), "does not answer"),
        (ValueError("threads is 0"), "threads is 0"),
    ],
)
def test_what_a_person_can_mend_is_one_sentence(
    error: Exception, said: str, checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(root: Path) -> int:
        raise error

    monkeypatch.chdir(checkout.root)
    assert run_command("name", work) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("name: ") and said in line


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("flows.promote", "--model", "unmask-targte"), 2, "invalid choice: 'unmask-targte'"),
        (("flows.promote", "--version", "3"), 2, "name it with --model"),
        (("flows.rollback", "--model", "champion"), 2, "invalid choice: 'champion'"),
        (("flows.retrain", "--max-parallel", "0"), 2, "it must be at least 1"),
        (("tasks.promote", "--model", TARGET), 2, f"{TARGET} has no champion in the registry: `make run`"),
        (("tasks.rollback",), 2, f"{TARGET} has no champion: `make run`"),
        (("tasks.serve", "--port", "70000"), 2, "serve.port is 70000; it must be at most 65535"),
        (("tasks.serve", "--model", f"{TARGET}/7"), 2, "has no mlruns, so nothing is registered here"),
        (("flows.worker", "--queues", "gpuu"), 2, "invalid choice: 'gpuu'"),
        (("flows.worker",), 2, "set PREFECT_API_URL"),
        (("flows.deploy",), 2, "set PREFECT_API_URL"),
        (("flows.services", "up", "--store", "sqlite:///x.db"), 1, "is not a PostgreSQL URL"),
        (("flows.preset", "tinny"), 2, "there is no preset 'tinny'; there are"),
    ],
)
def test_a_wrong_word_is_refused_by_name(command: tuple[str, ...], code: int, said: str, checkout: Checkout) -> None:
    done = checkout.python("-m", *command)
    assert (done.returncode, "Traceback" in done.stdout) == (code, False), done.stdout
    assert said in done.stdout


def misspell(root: Path) -> None:
    file = root / "params.yaml"
    file.write_text(file.read_text().replace("\nevaluate:", "\nevalute:"))


@pytest.mark.parametrize("command", ["flows.retrain", "flows.pipeline", "flows.clean_cache"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "dvc.yaml").write_text("stages: [oops\n"), "dvc.yaml"),
        (lambda root: (root / "params.yaml").unlink(), "params.yaml"),
        (misspell, "evaluate"),
        (lambda root: (root / ".work").write_text("a file\n"), ".work"),
        (lambda root: shutil.rmtree(root / ".git"), "git"),
    ],
    ids=["dvc.yaml", "no params.yaml", "misspelt section", "no folder", "no git"],
)
def test_a_checkout_that_is_not_whole_is_refused(
    command: str, spoil: Callable[[Path], object], said: str, checkout: Checkout
) -> None:
    spoil(checkout.root)
    done = checkout.python("-m", command)
    assert done.returncode != 0 and "Traceback" not in done.stdout, done.stdout
    assert said in done.stdout


@pytest.mark.parametrize(
    "program", ["tasks.promote", "tasks.rollback", "tasks.drift", "flows.clean_cache", "tasks.serve"]
)
def test_a_registry_that_does_not_answer_is_named(program: str, checkout: Checkout) -> None:
    address = away()
    done = checkout.python("-m", program, MLFLOW_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode != 0 and "Traceback" not in done.stdout, done.stdout
    assert address in done.stdout

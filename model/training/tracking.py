"""The MLflow store: the server that MLFLOW_TRACKING_URI names, else <root>/mlruns/mlflow.db (SQLite) with artifacts beside it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.atomic import locked
from model.training.tracker import Tracker

EXPERIMENT = "unmask"
KEY_TAG = "unmask.key"
LINEAGE, LINEAGE_FOLDER = ("dvc.yaml", "dvc.lock", "params.yaml"), "lineage"


def records_in_mlflow() -> bool:
    """Whether stages record in MLflow: it is installed, and UNMASK_TRACKING is not `files` (as it is for an ablation's arms)."""
    return find_spec("mlflow") is not None and os.environ.get("UNMASK_TRACKING") != "files"


class Unreachable(OSError):
    """The store does not answer; what was to be recorded waits."""


def log_lineage(tracker: Tracker, root: Path) -> None:
    """Keeps with the run what names every file that its results come from; flows/clean_cache.py spares those."""
    for name in LINEAGE:
        if (root / name).is_file():
            tracker.log_artifact(root / name, LINEAGE_FOLDER)


def local_store(root: Path) -> str:
    """The address of this checkout's own database."""
    return f"sqlite:///{root.resolve() / 'mlruns' / 'mlflow.db'}"


def tracking_uri(root: Path) -> str:
    """Where runs and models are recorded: the server that MLFLOW_TRACKING_URI names, else this checkout's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_store(root)


def open_store(root: Path, experiment: str = EXPERIMENT) -> tuple[Any, str]:
    """A client of the store and the id of an experiment; makes both on first use, however many ask at once.

    Unreachable when a server does not answer.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = tracking_uri(root)
    if uri == local_store(root):
        folder = root.resolve() / "mlruns"
        folder.mkdir(exist_ok=True)
        with locked(folder / "store.lock"):
            if not (folder / "mlflow.db").exists():
                _make_store(folder)
    with reaching():
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            artifacts = (root.resolve() / "mlruns/artifacts").as_uri() if uri == local_store(root) else None
            with suppress(MlflowException):  # another process was faster
                client.create_experiment(experiment, artifacts)
            found = client.get_experiment_by_name(experiment)
    return client, found.experiment_id


@contextmanager
def reaching() -> Iterator[None]:
    """Turns the many ways in which a store can be away into Unreachable; an answer that refuses something stays as it is."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (RequestException, ConnectionError) as error:
        raise Unreachable(_why_away(error)) from error
    except MlflowException as error:
        if error.get_http_status_code() < 500:
            raise
        raise Unreachable(_why_away(error)) from error


def _why_away(error: Exception) -> str:
    """The first clause of what the library says (the rest is long), and where it looked because a person said so."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return str(error).partition(": ")[0] + (f". MLFLOW_TRACKING_URI is {named}: is that server up?" if named else "")


def run_status(root: Path, run: str) -> str | None:
    """RUNNING, FINISHED, FAILED or KILLED; None for a run that is not in the store (any more)."""
    from mlflow.exceptions import MlflowException

    try:
        with reaching():
            return open_store(root)[0].get_run(run).info.status
    except MlflowException:
        return None


def files_of(client: Any, run: str | None, folder: str | None = None) -> set[str]:
    """Paths of the files that a run keeps (in a folder of it); none for a run that was deleted for good, or for no run."""
    from mlflow.exceptions import MlflowException

    try:
        with reaching():
            return {file.path for file in client.list_artifacts(run, folder)} if run else set()
    except MlflowException:
        return set()


def _make_store(folder: Path) -> None:
    """A migrated store in one rename: two processes that migrate one file at once break it for good."""
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    unfinished = folder / "mlflow.db.unfinished"
    unfinished.unlink(missing_ok=True)
    artifacts = (folder / "artifacts").as_uri()
    MlflowClient(tracking_uri=f"sqlite:///{unfinished}").create_experiment(EXPERIMENT, artifact_location=artifacts)
    os.replace(unfinished, folder / "mlflow.db")

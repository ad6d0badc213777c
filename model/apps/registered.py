"""Where the files of a registered model lie."""

from pathlib import Path
from typing import Any

from model.training.tracking import open_store


def registered_checkpoint(root: Path, name: str, alias: str) -> Path:
    """The checkpoint folder inside the registered version that carries the alias; ValueError when there is none."""
    client = _registry(root)
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise ValueError(
            f"the registry of {root} has no {name}@{alias}: `make run` trains and registers one"
        ) from error
    return _checkpoint(client, name, str(version.version), f"{name}@{alias} is version {version.version}, whose")


def checkpoint_of_version(root: Path, name: str, version: str) -> Path:
    """The checkpoint folder inside a registered version; ValueError when its files are gone."""
    return _checkpoint(_registry(root), name, version, f"{name} version {version} is registered, but its")


def _registry(root: Path) -> Any:
    if not (root / "mlruns").is_dir():
        raise ValueError(f"{root} has no mlruns, so nothing is registered here: `make run` trains and registers models")
    return open_store(root)[0]


def _checkpoint(client: Any, name: str, version: str, sentence: str) -> Path:
    folder = Path(client.get_model_version_download_uri(name, version).removeprefix("file://"))
    found = sorted(folder.glob("artifacts/*/config.json"))
    if not found:
        raise ValueError(f"{sentence} files are gone from {folder}")
    return found[0].parent

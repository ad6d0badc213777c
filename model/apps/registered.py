"""Where the files of a registered model lie."""

from dataclasses import dataclass, field
from pathlib import Path

from model.apps.registered_files import files_at
from model.training.tracking import local_store, open_store, reaching, tracking_uri


@dataclass(frozen=True)
class Registered:
    """A version of a registered model and the checkpoint folder inside it."""

    name: str
    version: str
    folder: Path
    tags: dict[str, str] = field(default_factory=dict)


def registered_checkpoint(root: Path, name: str, alias: str) -> Path:
    """The checkpoint folder inside the registered version that carries the alias; ValueError when there is none."""
    return registered_version(root, name, alias=alias).folder


def checkpoint_of_version(root: Path, name: str, version: str) -> Path:
    """The checkpoint folder inside a registered version; ValueError when its files are gone."""
    return registered_version(root, name, version=version).folder


def registered_version(root: Path, name: str, *, alias: str = "", version: str = "") -> Registered:
    """The version of a registered model with the alias, or of that number; ValueError when it, or its files, are gone."""
    wanted = f"{name}@{alias}" if alias else f"{name} version {version}"
    if tracking_uri(root) == local_store(root) and not (root / "mlruns").is_dir():
        raise ValueError(
            f"{root} has no mlruns, so nothing is registered here: `make run` trains and registers models, or set "
            "MLFLOW_TRACKING_URI to the server that has the registry"
        )
    from mlflow.exceptions import MlflowException

    try:
        with reaching():
            client, _ = open_store(root)
            found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
            folder = files_at(root, client.get_model_version_download_uri(name, found.version))
    except MlflowException as error:
        raise ValueError(
            f"the registry at {tracking_uri(root)} has no {wanted}: `make run` trains and registers one"
        ) from error
    configs = sorted(folder.glob("artifacts/*/config.json"))
    if not configs:
        what = f"{wanted} is version {found.version}, whose" if alias else f"{wanted} is registered, but its"
        raise ValueError(f"{what} files are gone from {folder}")
    return Registered(name, str(found.version), configs[0].parent, dict(found.tags))

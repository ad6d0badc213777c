"""Where the files of a registered model lie."""

from pathlib import Path

from model.training.tracking import open_store


def registered_checkpoint(root: Path, name: str, alias: str) -> Path:
    """The checkpoint folder inside the registered version that carries the alias; ValueError when there is none."""
    if not (root / "mlruns").is_dir():
        raise ValueError(f"{root} has no mlruns, so nothing is registered here: `make run` trains and registers models")
    from mlflow.exceptions import MlflowException

    client, _ = open_store(root)
    try:
        version = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise ValueError(
            f"the registry of {root} has no {name}@{alias}: `make run` trains and registers one"
        ) from error
    folder = Path(client.get_model_version_download_uri(name, version.version).removeprefix("file://"))
    found = sorted(folder.glob("artifacts/*/config.json"))
    if not found:
        raise ValueError(f"{name}@{alias} is version {version.version}, whose files are gone from {folder}")
    return found[0].parent

"""Files of a registered version on this machine: where they lie, or, behind a server, a copy that is fetched once."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from model.training.tracking import tracking_uri

KEPT = Path(".work/registered")


def is_local(uri: str) -> bool:
    """Whether a version's download address is a folder of this machine."""
    return uri.startswith(("/", "file://"))


def has_files(root: Path, uri: str) -> bool:
    """Whether a version still has its model and weights, without fetching them."""
    if is_local(uri):
        folder = Path(uri.removeprefix("file://"))
        names = [path.name for path in folder.rglob("*")]
    else:
        names = listed(root, uri)
    return "MLmodel" in names and any(name.endswith(".safetensors") for name in names)


def files_at(root: Path, uri: str) -> Path:
    """The folder with a version's files, which may be empty or absent when they are gone.

    Behind a server they are copied below .work in one rename, once: a version never changes.
    """
    if is_local(uri):
        return Path(uri.removeprefix("file://"))
    folder = root / KEPT / hashlib.sha256(f"{tracking_uri(root)} {uri}".encode()).hexdigest()[:16]
    if not folder.is_dir() and listed(root, uri):
        import mlflow.artifacts

        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        made = mlflow.artifacts.download_artifacts(
            artifact_uri=uri, dst_path=str(unfinished), tracking_uri=tracking_uri(root)
        )
        with suppress(OSError):  # another process was faster
            os.replace(made, folder)
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def listed(root: Path, uri: str) -> list[str]:
    """Names of all files below a version's address; none where it is gone."""
    import mlflow.artifacts

    names, waiting = [], [uri.rstrip("/")]
    while waiting:
        place = waiting.pop()
        for entry in mlflow.artifacts.list_artifacts(artifact_uri=place, tracking_uri=tracking_uri(root)) or []:
            name = Path(entry.path).name
            (waiting if entry.is_dir else names).append(f"{place}/{name}" if entry.is_dir else name)
    return names

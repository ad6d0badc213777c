"""The parent run in MLflow of one pass over the pipeline, whoever drives it (`dvc repro` or the Prefect flow).

The first stage announces it in .work/pipeline_run; the first stage that records anything opens it, and those that run
meanwhile attach themselves; the last one links the earlier runs of stages that had nothing to do, and closes it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from model.atomic import locked, write_json
from model.training.tracking import KEY_TAG, Unreachable, open_store, reaching, records_in_mlflow, run_status

PARENT_NAME = "pipeline"
STAGE_TAG = "stage."


def announce_pipeline_run(root: Path, tags: dict[str, str]) -> None:
    """Asks for a new parent; whichever stage records first opens it (a pass that finds nothing new pays nothing here)."""
    with _note(root) as note:
        earlier = note.read().get("run")
        note.write({"tags": tags, "earlier": earlier})


def current_pipeline_run(root: Path) -> str | None:
    """The id of the parent that is under way, opened now if it was only announced; None without MLflow or a parent, or when
    neither is known because the store is away."""
    if not records_in_mlflow():
        return None
    run = None
    try:
        with _note(root) as note:
            content = note.read()
            run = content.get("run")
            if "tags" in content:
                content = {"run": _open(root, content["tags"], content["earlier"])}
                note.write(content)
        run = content.get("run")
        return run if run and run_status(root, run) not in (None, "FINISHED") else None
    except Unreachable:
        return run


def end_pipeline_run(root: Path, status: str) -> None:
    """Marks the parent; a stage that is run again later takes it up where it was left."""
    run = current_pipeline_run(root)
    if run:
        with suppress(Unreachable), reaching():  # nothing hangs on it
            open_store(root)[0].set_terminated(run, status)


def close_pipeline_run(root: Path, keys: dict[str, str], files: list[Path]) -> dict[str, str]:
    """Links on the parent the latest finished run of every stage, and finishes it; returns stage -> run id.

    `keys` are the fingerprints of the stages: with one of them a run is found whether its stage has just run, was
    restored or was skipped. `files` are what the parent keeps for reading (the report).
    """
    client, experiment = open_store(root)
    parent = current_pipeline_run(root)
    links = {}
    for stage, key in keys.items():
        query = f"tags.`{KEY_TAG}` = '{key}' and attributes.run_name = '{stage}' and attributes.status = 'FINISHED'"
        found = client.search_runs([experiment], query, 1, 1, ["attributes.start_time DESC"])
        if found:
            links[stage] = found[0].info.run_id
    if parent:
        for stage, run in links.items():
            client.set_tag(parent, STAGE_TAG + stage.replace("@", "/"), run)  # MLflow refuses "@" in a tag's name
        client.log_text(parent, json.dumps(links, indent=2, sort_keys=True), "stages.json")
        for file in filter(Path.is_file, files):
            client.log_artifact(parent, str(file))
        client.set_terminated(parent, "FINISHED")
    return links


def _open(root: Path, tags: dict[str, str], earlier: str | None) -> str:
    client, experiment = open_store(root)
    if earlier and run_status(root, earlier) == "RUNNING":
        client.set_terminated(earlier, "KILLED")
    run: str = client.create_run(experiment, run_name=PARENT_NAME, tags=tags).info.run_id
    return run


class _Note:
    """The file that holds the announcement or the id."""

    def __init__(self, file: Path):
        self.file = file

    def read(self) -> dict[str, Any]:
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}

    def write(self, content: dict[str, Any]) -> None:
        write_json(self.file, content)


@contextmanager
def _note(root: Path) -> Iterator[_Note]:
    """.work/pipeline_run, under a lock: siblings start together."""
    file = root / ".work" / "pipeline_run"
    file.parent.mkdir(exist_ok=True)
    with locked(file.with_suffix(".lock")):
        yield _Note(file)

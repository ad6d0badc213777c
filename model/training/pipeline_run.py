"""The parent run in MLflow of one pass over the pipeline, whoever drives it (`dvc repro` or the Prefect flow).

The first stage opens it and leaves its id in .work/pipeline_run; stages that run meanwhile attach themselves; the last one
links the earlier runs of the stages that had nothing to do, and closes it.
"""

import json
import os
from importlib.util import find_spec
from pathlib import Path

from model.training.tracking import KEY_TAG, open_store, run_status

PARENT_NAME = "pipeline"
STAGE_TAG = "stage."


def _note(root: Path) -> Path:
    return root / ".work" / "pipeline_run"


def open_pipeline_run(root: Path, tags: dict[str, str]) -> str | None:
    """Starts a new parent and returns its id (None without MLflow); one that an earlier pass left open is marked KILLED."""
    if find_spec("mlflow") is None:
        return None
    client, experiment = open_store(root)
    earlier = current_pipeline_run(root)
    if earlier and run_status(root, earlier) == "RUNNING":
        client.set_terminated(earlier, "KILLED")
    run = client.create_run(experiment, run_name=PARENT_NAME, tags=tags).info.run_id
    note = _note(root)
    note.parent.mkdir(exist_ok=True)
    unfinished = note.with_suffix(".unfinished")
    unfinished.write_text(run, encoding="utf-8")
    os.replace(unfinished, note)
    return run


def current_pipeline_run(root: Path) -> str | None:
    """The id of the parent that is open or was left unfinished; None when there is none."""
    note = _note(root)
    if find_spec("mlflow") is None or not note.is_file():
        return None
    run = note.read_text(encoding="utf-8").strip()
    return run if run_status(root, run) not in (None, "FINISHED") else None


def end_pipeline_run(root: Path, status: str) -> None:
    """Marks the open parent; a stage that is run again later takes it up where it was left."""
    run = current_pipeline_run(root)
    if run:
        open_store(root)[0].set_terminated(run, status)


def close_pipeline_run(root: Path, keys: dict[str, str], files: list[Path]) -> dict[str, str]:
    """Links on the open parent the run of every stage (run now, restored or skipped) and finishes it; returns stage -> run id.

    `keys` are the fingerprints of all stages, `files` what the parent keeps for reading (the report).
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
            client.set_tag(parent, f"{STAGE_TAG}{stage}", run)
        client.log_text(parent, json.dumps(links, indent=2, sort_keys=True), "stages.json")
        for file in filter(Path.is_file, files):
            client.log_artifact(parent, str(file))
        client.set_terminated(parent, "FINISHED")
    return links

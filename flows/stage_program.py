"""A stage of DVC's graph in one process: python -m flows.stage_program STAGE [FOLDER] (flows/stage_process.py starts it)

Does what `dvc repro --single-item STAGE` does, and tells the stage its fingerprint, so that the stage need not load DVC again.
With FOLDER, on a worker: takes over what FOLDER/given.json says that earlier stages have made, fetches it, runs the stage, pushes
what it made and writes to FOLDER/made.json what it hands over. DVC's commands run inside this process: loading DVC costs
more than most of them.
"""

import json
import sys
import time
from pathlib import Path

from flows.checkout import hand_over, receive
from flows.stage_process import SAYS_WHY
from model.atomic import write_atomically
from tasks.fingerprint import announce

PUSH_PAUSES_SECONDS = (1.0, 5.0, 25.0)
NOT_PUSHED = (
    "its result is made and kept in this clone ({clone}), but the DVC remote cannot be reached. When it can, run the pipeline "
    "again: nothing is computed twice."
)
NOT_HERE = "it needs the results of {names}, which this clone does not have and the DVC remote does not give."
NO_REMOTE = "Name a remote that all workers reach: dvc remote add --default NAME URL (docs/operations.md)"


def main(stage: str, folder: Path | None = None) -> int:
    """What `dvc repro` returns, 0 when all went well, SAYS_WHY when the last line is the reason why not."""
    root = Path.cwd()
    try:
        return reproduce(root, stage) if folder is None else work(root, stage, folder)
    except ValueError as error:
        print(error, flush=True)
        return SAYS_WHY


def reproduce(root: Path, stage: str, *options: str) -> int:
    """`dvc repro` of one stage; ValueError when what it needs is not there."""
    announce(root, stage)
    return dvc("repro", "--single-item", *options, stage)


def work(root: Path, stage: str, folder: Path) -> int:
    """The same with what it needs brought here and what it makes given away; ValueError with the reason where that fails."""
    given = json.loads((folder / "given.json").read_text(encoding="utf-8"))
    if given["known"]:
        receive(root, **given["known"])
    upstream, remote = given["upstream"], has_remote(root)
    fetched = remote and (not upstream or dvc("pull", "--run-cache", *upstream) == 0)
    if not fetched and (missing := _missing(root, upstream)):
        raise ValueError(NOT_HERE.format(names=", ".join(missing)) + ("" if remote else f" {NO_REMOTE}"))
    if code := reproduce(root, stage, *(["--pull"] if fetched else [])):
        return code
    if remote and not pushed(stage):
        raise ValueError(NOT_PUSHED.format(clone=root))
    write_atomically(folder / "made.json", json.dumps(hand_over(root, {stage})))
    return 0


def dvc(*arguments: str) -> int:
    """The exit code of a DVC command, run in this process."""
    from dvc.cli import main as dvc_main

    code = dvc_main(["--wait-for-lock", *arguments])
    sys.stdout.flush()
    return code


def pushed(stage: str) -> bool:
    """True when the stage's results and its record in the run-cache are in the remote."""
    for pause in (*PUSH_PAUSES_SECONDS, None):
        if dvc("push", "--run-cache", stage) == 0:
            return True
        if pause is not None:
            print(f"the DVC remote cannot be reached; trying again in {pause:.0f} s", flush=True)
            time.sleep(pause)
    return False


def _missing(root: Path, stages: list[str]) -> list[str]:
    """Those that neither the checkout nor the clone's cache has."""
    if missing := absent(root, stages):
        dvc("checkout", *missing)
        return absent(root, missing)
    return []


def absent(checkout: Path, stages: list[str]) -> list[str]:
    """Those whose outs are not in the checkout as dvc.lock has them."""
    from dvc.repo import Repo

    if not stages:
        return []
    with Repo(str(checkout), _wait_for_lock=True) as repo, repo.lock:
        chosen = (each for each in repo.index.stages if each.name in stages)
        return [each.name for each in chosen if any(out.status() for out in each.outs)]


def has_remote(checkout: Path) -> bool:
    """True when DVC knows a default remote."""
    from dvc.config import Config

    return bool(Config(str(checkout / ".dvc"))["core"].get("remote"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(Path, sys.argv[2:3])))

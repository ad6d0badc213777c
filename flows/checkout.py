"""A working tree of its own for every preset, and for retraining, that is run by deployment: .work/checkouts/<name>, beside the
user's outputs.

It is a git worktree at a commit, with a params.yaml of its own and the clone's DVC cache: what one of them has computed is
restored in the others. Stages that run on several machines hand each other dvc.lock's entries; the data goes through the DVC
remote.
"""

import difflib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from model.atomic import locked, write_atomically
from tasks.parameters import load_params

FOLDER = Path(".work/checkouts")
PARENT_NOTE = Path(".work/pipeline_run")  # which MLflow run the stages of this pass belong to


def prepare_checkout(clone: Path, name: str, commit: str, settings: str = "") -> Path:
    """The working tree .work/checkouts/<name> at `commit`, `settings` its params.yaml; ValueError for a commit it lacks."""
    folder = clone / FOLDER / name
    (clone / FOLDER).mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        _at_commit(clone, folder, commit)
        if settings:
            write_atomically(folder / "params.yaml", settings)
    return folder


def preset_settings(checkout: Path, preset: str, overrides: dict[str, Any]) -> str:
    """What params.yaml is to be for a preset of the checkout's commit; ValueError for a preset or key that does not exist."""
    source = checkout / "presets" / f"{preset}.yaml"
    if not source.is_file():
        names = ", ".join(sorted(path.stem for path in source.parent.glob("*.yaml")))
        raise ValueError(f"the commit has no preset {preset!r}; it has {names}")
    if not overrides:
        return source.read_text(encoding="utf-8")
    return yaml.safe_dump(overridden(load_params(source), overrides), sort_keys=False, allow_unicode=True)


def overridden(params: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`params` with dotted names replaced: {"finetune_ar.steps": 10}; ValueError for a name that is not there."""
    for name, value in overrides.items():
        *sections, last = name.split(".")
        place: Any = params
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            known = sorted(_dotted(params))
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"overrides: the preset has no {name!r}.{hint}")
        place[last] = value
    return params


def _dotted(params: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in params.items():
        yield prefix + str(name)
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")


def current_commit(clone: Path) -> str:
    """The commit of a clone; ValueError where there is none."""
    found = _git(clone, "rev-parse", "HEAD")
    if found.returncode:
        raise ValueError(f"{clone} has no commit; a deployed run uses what is committed: git commit first")
    return found.stdout.strip()


def uncommitted(clone: Path) -> list[str]:
    """Tracked files that differ from the commit: a deployed run does not see the difference."""
    return [line[3:] for line in _git(clone, "status", "--porcelain", "--untracked-files=no").stdout.splitlines()]


def _at_commit(clone: Path, folder: Path, commit: str) -> None:
    if _git(clone, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        _git(clone, "fetch", "--quiet", "--all")
    if not (folder / ".git").exists():
        _git(clone, "worktree", "prune")
        done = _git(clone, "worktree", "add", "--quiet", "--force", "--detach", str(folder), commit)
    elif _git(folder, "rev-parse", "HEAD").stdout.strip() != commit:
        done = _git(folder, "checkout", "--quiet", "--force", "--detach", commit)
    else:
        done = None
    if done is not None and done.returncode:
        raise ValueError(f"{clone} cannot check out commit {commit[:12]}; push it first: {done.stderr.strip()}")
    _share_cache(clone, folder)


def _share_cache(clone: Path, folder: Path) -> None:
    """The clone's DVC cache, and what its own config.local says (remotes, credentials), in the working tree's config.local."""
    from dvc.config import Config, merge
    from dvc.repo import Repo

    marker, wanted = folder / ".dvc/config.local", clone / ".dvc/config.local"
    stamp = wanted.stat().st_mtime_ns if wanted.is_file() else 0
    if marker.is_file() and marker.stat().st_mtime_ns >= stamp:
        return
    with Repo(str(clone)) as repo:
        cache, local = repo.cache.local_cache_dir, repo.config.read("local")
    with Config(str(folder / ".dvc")).edit("local") as config:
        merge(config, local)
        config["cache"]["dir"] = cache


def lock_entries(checkout: Path) -> dict[str, Any]:
    """dvc.lock's entries by stage; none before the first run."""
    file = checkout / "dvc.lock"
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return (content or {}).get("stages", {})


def receive(checkout: Path, entries: dict[str, Any], files: dict[str, str], note: str) -> None:
    """Takes over what other machines have done: entries of dvc.lock, small files that DVC does not cache, the parent run."""
    from dvc.repo import Repo

    with Repo(str(checkout), _wait_for_lock=True) as repo, repo.lock:
        known = lock_entries(checkout)
        if any(known.get(name) != entry for name, entry in entries.items()):
            content = {"schema": "2.0", "stages": known | entries}
            write_atomically(checkout / "dvc.lock", yaml.safe_dump(content, sort_keys=False))
    for name, text in files.items():
        write_atomically(checkout / name, text)
    if note:
        write_atomically(checkout / PARENT_NOTE, note)


def hand_over(checkout: Path, stages: set[str]) -> dict[str, Any]:
    """The arguments of `receive` for what `stages` have made here."""
    from dvc.repo import Repo

    entries = {name: entry for name, entry in lock_entries(checkout).items() if name in stages}
    with Repo(str(checkout)) as repo:
        outs = [out for stage in repo.index.stages if stage.name in stages for out in stage.outs if not out.use_cache]
    files = {out.def_path: Path(out.fs_path).read_text("utf-8") for out in outs if Path(out.fs_path).is_file()}
    note = checkout / PARENT_NOTE
    return {"entries": entries, "files": files, "note": note.read_text("utf-8") if note.is_file() else ""}


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)

"""What a stage's result depends on, as one hash: its command, the contents of its deps and its parameters.

Work in progress and MLflow runs carry this key, so a kill can be resumed and an earlier run found again, and a change
of anything that matters can be neither. DVC keeps the hash of every file it has seen, so a checkpoint of many
gigabytes is not read again. Without DVC (or outside a DVC repository) dvc.yaml is read here and the files are hashed.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from tasks.parameters import load_params
from tasks.training_answers import FOLDER as OWN_ANSWERS

RAW_DATA = "data/raw"
ANNOUNCED = "UNMASK_FINGERPRINT"  # what who starts a stage knows already, so that the stage need not load DVC
SMALL_BYTES = 2**20


@dataclass(frozen=True)
class Fingerprint:
    """`key` names this computation; `data_hash` is the md5 of the raw data underneath it ("" before there is any)."""

    key: str
    data_hash: str


def fingerprint(root: Path, stage: str) -> Fingerprint:
    """The fingerprint of one stage (`tokenize`, `evaluate@tune_cap`); ValueError when it is unknown or a dep is absent."""
    if find_spec("dvc") is None or not (root / ".dvc").is_dir():
        return _fingerprint_without_dvc(root, stage)
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        known = {each.name: each for each in repo.index.stages}
        if stage not in known:
            raise ValueError(_unknown(stage, list(known)))
        return Fingerprint(_key_from_dvc(known[stage], started_from(root, stage)), _hash_of_raw_data(repo))


def announce(root: Path, stage: str) -> None:
    """Computes a stage's fingerprint and tells it to the processes that this one starts."""
    found = fingerprint(root, stage)
    os.environ[ANNOUNCED] = json.dumps({"stage": stage, "key": found.key, "data_hash": found.data_hash})


def announced(stage: str) -> Fingerprint | None:
    """The fingerprint that was told; None when none was, or another stage's."""
    found = json.loads(os.environ.get(ANNOUNCED, "{}"))
    return Fingerprint(found["key"], found["data_hash"]) if found.get("stage") == stage else None


def fingerprints(root: Path) -> dict[str, str]:
    """The key of every stage whose deps all exist, by address; needs DVC."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        ready = (stage for stage in repo.index.stages if all(dep.exists for dep in stage.deps))
        return {stage.name: _key_from_dvc(stage, started_from(root, stage.name)) for stage in ready}


def started_from(root: Path, stage: str) -> dict[str, str]:
    """The checkpoints that a section names as `start_from` or `student`, each with what tells its contents apart ("" on the hub).

    They stand in for checkpoints of the pipeline, which then need not exist. Large files count by size and time alone.
    """
    section = load_params(root / "params.yaml").get(stage.partition("@")[0])
    given = section.get("start_from") if isinstance(section, dict) else None
    sources = list(given.values()) if isinstance(given, dict) else [given] if given else []
    if isinstance(section, dict) and section.get("student"):
        sources.append(section["student"])
    return {str(source): _mark(root / str(source)) for source in sources}


def _mark(folder: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for file in _files(folder) if folder.exists() else ():
        state = file.stat()
        small = file.read_bytes() if state.st_size < SMALL_BYTES else str(state.st_mtime_ns).encode()
        digest.update(f"{file.name}\0{state.st_size}\0".encode() + small)
    return digest.hexdigest() if folder.exists() else ""


def _replaceable(path: str, given: dict[str, str]) -> bool:
    """A checkpoint that another stands in for; own answers, which a stage that trains on the truth can do without (one that
    wants them says itself that they are missing)."""
    return path == OWN_ANSWERS or (bool(given) and path.startswith("data/models/"))


def _key_from_dvc(stage: Any, given: dict[str, str]) -> str:
    from dvc.dependency.param import ParamsDependency

    deps, params = dict(given), {}
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            params.update(dep.read_params(flatten=False))
        elif not dep.exists and not _replaceable(dep.def_path, given):
            raise ValueError(_absent(stage.name, dep.def_path))
        elif dep.exists:
            deps[dep.def_path] = dep.get_hash().value
    return _digest(stage.cmd, deps, params)


def _hash_of_raw_data(repo: Any) -> str:
    outs = [out for stage in repo.index.stages for out in stage.outs if out.def_path == RAW_DATA and out.exists]
    return outs[0].get_hash().value if outs else ""


def _digest(command: Any, deps: dict[str, str], params: dict[str, Any]) -> str:
    facts = json.dumps([command, deps, params], sort_keys=True, default=str)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _unknown(stage: str, known: list[str]) -> str:
    instances = [name.partition("@")[2] for name in known if name.partition("@")[0] == stage]
    if instances:
        return f"stage {stage} has several instances: give --instance, one of {', '.join(instances)}"
    return f"dvc.yaml has no stage {stage!r}. It has: {', '.join(known) or 'none'}"


def _absent(stage: str, path: str) -> str:
    return f"stage {stage} reads {path}, which does not exist. Make what it needs first: dvc repro {stage}"


def _fingerprint_without_dvc(root: Path, stage: str) -> Fingerprint:
    declared, names = _declaration(root, stage)
    names = load_params(root / "params.yaml") | names
    given = started_from(root, stage)
    deps = dict(given)
    for path in (_interpolate(template, names) for template in declared.get("deps", [])):
        if (root / path).exists():
            deps[path] = _hash_of_path(root / path)
        elif not _replaceable(path, given):
            raise ValueError(_absent(stage, path))
    chosen = {name: _value(names, name) for name in declared.get("params", [])}
    raw = root / RAW_DATA
    command = _interpolate(declared["cmd"], names)
    return Fingerprint(_digest(command, deps, chosen), _hash_of_path(raw) if raw.exists() else "")


def _declaration(root: Path, stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A stage as written in dvc.yaml, and what `${item}` and `${key}` stand for in it."""
    file = root / "dvc.yaml"
    stages = (yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}).get("stages", {})
    name, _, instance = stage.partition("@")
    instances = _instances(root, stages.get(name, {}))
    if name not in stages or instance not in instances:
        known = [f"{each}@{one}".rstrip("@") for each in stages for one in _instances(root, stages[each])]
        raise ValueError(_unknown(stage, known))
    item = instances[instance] if isinstance(instances, dict) else instance
    return stages[name].get("do", stages[name]), {"item": item, "key": instance}


def _instances(root: Path, declared: dict[str, Any]) -> Any:
    """What a stage's `foreach` lists, [""] without one; an optional stage has the list in params.yaml."""
    listed = declared.get("foreach", [""])
    return _value(load_params(root / "params.yaml"), listed[2:-1]) or [] if isinstance(listed, str) else listed


def _interpolate(template: str, names: dict[str, Any]) -> str:
    return re.sub(r"\$\{([^}]+)\}", lambda match: str(_value(names, match[1])), template)


def _value(names: dict[str, Any], path: str) -> Any:
    """What a dotted path stands for; ValueError where params.yaml lacks it."""
    found: Any = names
    for part in path.split("."):
        if not isinstance(found, dict) or part not in found:
            raise ValueError(f"params.yaml has no {path}, which dvc.yaml names. Complete examples: presets/")
        found = found[part]
    return found


def _hash_of_path(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for file in _files(path):
        digest.update(f"{file.relative_to(path)}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "md5").digest())
    return digest.hexdigest()


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)

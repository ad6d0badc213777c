"""Registers what was trained, and closes the pipeline's run: python -m tasks.register

Models are told apart by the hash of their checkpoint: one that is registered already is left alone, one that is missing (or
whose files are gone) is registered again. `challenger` is always the newest; `champion` is set only where there is none, so
that nothing replaces a champion but a promotion. A target version names the draft it belongs to, so that both move together.
Each version says where it comes from: commit, dvc.lock, data and their licenses, the pipeline's run, the versions before it.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from model.apps.registered_files import has_files
from model.training.logged_models import link_figures, log_models
from model.training.pipeline_run import close_pipeline_run, current_pipeline_run
from model.training.tracking import EXPERIMENT, log_lineage, open_store, tracking_uri
from tasks.fingerprint import fingerprints
from tasks.parameters import check_keys
from tasks.promotion import champions, decisions
from tasks.promotion.data_profile import FILE, profile_of
from tasks.stage import Stage, run_stage

MODELS = {  # registered name -> the stage whose checkpoint it is
    "unmask-draft": "distill_draft",
    "unmask-target": "finetune_diffusion",
    "unmask-target-cap": "tune_cap",
}
DRAFT, TARGET = champions.DRAFT, champions.LEADER
SPECULATION_TAG = "unmask.speculation"  # of a target's version: how often guesses were right, as JSON
PROGRAM = Path("model/apps/pyfunc_model.py")
REPORT = ("data/reports/report.json", "data/reports/report.html")
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that should be in the registry as a version of `name`."""

    name: str
    stage: str
    folder: Path
    checkpoint_hash: str


def register(stage: Stage) -> None:
    """Brings the registry up to date with data/models, then links and closes the pipeline's run."""
    check_keys(stage.name, stage.section, ())
    client, _ = open_store(stage.root)
    keys = fingerprints(stage.root)
    origin = cache(lambda: data_origin(stage))  # reads much, and is wanted for new versions only
    versions: dict[str, str] = {}
    fresh: set[str] = set()
    for candidate in candidates(stage.root):
        version = find_version(stage.root, client, candidate)
        is_new = version is None
        if version is None:
            version = log_version(stage, candidate)
            tags = lineage(stage, candidate, keys.get(candidate.stage, ""))
            tag_version(client, candidate.name, version, tags | origin())
            fresh.add(candidate.name)
        tag_version(client, candidate.name, version, measurements(stage.root, candidate.stage))
        tag_version(client, candidate.name, version, guesses(stage, candidate.stage))
        versions[candidate.name] = version
        print(
            f"register: {candidate.name} version {version} {'registered' if is_new else 'is there already'}", flush=True
        )
        stage.tracker.set_tags({f"registered.{candidate.name}": version})
    if fresh:
        log_lineage(stage.tracker, stage.root)
    for name, version in versions.items():
        if name in fresh:
            tag_version(client, name, version, relatives(client, name, versions))
        set_aliases(client, stage.root, name, version)
    champions.follow(client)
    earlier = {name: key for name, key in keys.items() if name != stage.name}
    runs = close_pipeline_run(stage.root, earlier, [stage.root / path for path in REPORT])
    log_models(stage.root, runs)
    for name, version in versions.items():
        link_version(client, name, version, runs)


def candidates(root: Path) -> list[Candidate]:
    """What data/models has of MODELS, the draft first; ValueError for a checkpoint that is not there."""
    found = []
    for name, stage in MODELS.items():
        folder = root / "data" / "models" / stage
        if not folder.is_dir():
            raise ValueError(f"there is no checkpoint {folder.relative_to(root)} to register: run stage {stage} first")
        found.append(Candidate(name, stage, folder, hash_of_folder(folder)))
    return found


def hash_of_folder(folder: Path) -> str:
    """A hash of the names and contents of all files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def lineage(stage: Stage, candidate: Candidate, key: str) -> dict[str, str]:
    """What a version was made by and from."""
    lock = stage.root / "dvc.lock"
    tags = {
        "unmask.checkpoint": candidate.checkpoint_hash,
        "unmask.stage": candidate.stage,
        "unmask.key": key,
        "unmask.pipeline_run": current_pipeline_run(stage.root) or "",
        "unmask.dvc_lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "",
    }
    return tags | {name: stage.tags[name] for name in ("unmask.preset", "unmask.git", "unmask.data")}


def data_origin(stage: Stage) -> dict[str, str]:
    """Tags about the text under the models; the profile itself becomes an artifact of this stage's run, `unmask.data_profile`."""
    if not (stage.root / "data/validated/summary.json").is_file():
        return {}
    fraction = float((stage.params.get("tokenize") or {}).get("validation_fraction", 0.02))
    profile = profile_of(stage.root, fraction)
    file = stage.work / FILE
    file.write_text(json.dumps(profile, ensure_ascii=False) + "\n", encoding="utf-8")
    stage.tracker.log_artifact(file)
    licenses = sorted({corpus["license"] or "unknown" for corpus in profile["corpora"].values()})
    corpora = [f"{title}={corpus['identity'][:16]}" for title, corpus in profile["corpora"].items()]
    return {
        "unmask.data_profile": stage.tracker.run,
        "unmask.data_corpora": ", ".join(corpora)[: champions.LONGEST_TAG],
        "unmask.licenses": ", ".join(licenses)[: champions.LONGEST_TAG],
        "unmask.validation": "passed" if profile["passed"] else "failed",
    }


def relatives(client: Any, name: str, versions: dict[str, str]) -> dict[str, str]:
    """The versions a new one belongs to: a target's draft, what it was made from, and who was champion at that time."""
    tags = {"unmask.champion_then": champions.aliases(client, name).get(champions.CHAMPION, "")}
    if name != DRAFT and DRAFT in versions:
        tags[champions.DRAFT_TAG] = versions[DRAFT]
    if name != TARGET and TARGET in versions:  # the draft was distilled from it, CAP tuned on it
        tags["unmask.parent_version"] = f"{TARGET}/{versions[TARGET]}"
    return tags


def measurements(root: Path, stage: str) -> dict[str, str]:
    """Score and tokens per forward at the main operating point, where the model has been evaluated."""
    file = root / "data" / "metrics" / "evaluate" / f"{stage}.json"
    if not file.is_file():
        return {}
    figures = json.loads(file.read_text(encoding="utf-8"))
    main = figures["test"][figures["main_point"]]
    names = {"score": "eval.score", "tokens_per_forward": "eval.tpf"}
    return {tag: str(main[name]["value"]) for name, tag in names.items() if name in main}


def guesses(stage: Stage, target: str) -> dict[str, str]:
    """How often guesses were right by policy and source, at the greatest depth that the speculate stage tried."""
    file = stage.root / "data" / "metrics" / "speculate.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    policies = (stage.params.get("speculate") or {}).get("policies", {})
    deepest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["depth"]):
        if row["target"] == target and row["policy"] in policies:
            deepest[row["policy"], row["source"]] = {
                "policy": policies[row["policy"]],
                **{name: row[name] for name in ("source", "depth", "match_probability")},
            }
    return {SPECULATION_TAG: json.dumps(list(deepest.values()))} if deepest else {}


def link_version(client: Any, name: str, version: str, runs: dict[str, str]) -> None:
    """The version's MLflow model gets the figures of its training and evaluation, too."""
    model = str(client.get_model_version(name, version).source).removeprefix("models:/")
    stage = MODELS[name]
    if model.startswith("m-"):
        link_figures(
            client, model, [runs[run] for run in (stage, f"{stage}@{stage}", f"evaluate@{stage}") if run in runs]
        )


def tag_version(client: Any, name: str, version: str, tags: dict[str, str]) -> None:
    """Sets tags of a version."""
    for tag, value in tags.items():
        client.set_model_version_tag(name, version, tag, value)


def find_version(root: Path, client: Any, candidate: Candidate) -> str | None:
    """The newest version with this checkpoint; one whose files are gone does not count."""
    known = client.search_model_versions(f"name = '{candidate.name}'")
    same = [each for each in known if each.tags.get("unmask.checkpoint") == candidate.checkpoint_hash]
    for each in sorted(same, key=lambda version: -int(version.version)):
        if has_files(root, client.get_model_version_download_uri(each.name, each.version)):
            return str(each.version)
    return None


def log_version(stage: Stage, candidate: Candidate) -> str:
    """Stores a self-contained copy (code, checkpoint) under this stage's run and registers it; returns its number."""
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    mlflow.set_tracking_uri(tracking_uri(stage.root))
    mlflow.set_registry_uri(tracking_uri(stage.root))
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_id=stage.tracker.run), warnings.catch_warnings():
        # Type hints on predict would override the signature and drop its parameters; the signature is given, not inferred.
        warnings.filterwarnings("ignore", message="(?s).*(Add type hints|An input example was not provided)")
        made = mlflow.pyfunc.log_model(
            name=candidate.name,
            python_model=str(stage.root / PROGRAM),
            artifacts={"checkpoint": str(candidate.folder)},
            code_paths=[str(stage.root / "model")],
            signature=infer_signature(pd.DataFrame({"prompt": ["hello"]}), ["hello"]),
            pip_requirements=[_pinned(package) for package in PACKAGES],
            registered_model_name=candidate.name,
        )
    return str(made.registered_model_version)


def _pinned(package: str) -> str:
    from importlib.metadata import version

    return f"{package}=={version(package).partition('+')[0]}"


def set_aliases(client: Any, root: Path, name: str, version: str) -> None:
    """`challenger` to this version, and `champion`, too, where there is none yet."""
    named = champions.aliases(client, name)
    if named.get(champions.CHALLENGER) != version:
        client.set_registered_model_alias(name, champions.CHALLENGER, version)
    if champions.CHAMPION not in named:
        client.set_registered_model_alias(name, champions.CHAMPION, version)
        decisions.append(root, {"action": decisions.FIRST, "model": name, "from": "", "to": version})


if __name__ == "__main__":
    run_stage(register, "register")

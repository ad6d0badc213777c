"""Writes a checkpoint for other people's tools: weights, tokenizer, model card, and a modelling file that needs no Unmask.

    python -m tasks.export --model data/models/tune_cap --to exports/tune_cap
    python -m tasks.export --model data/models/tune_cap --to exports/tune_cap-llada2 --family llada2_moe --dtype bfloat16

AutoModelForCausalLM opens every export with trust_remote_code=True. Without --family the layout is this project's own. A public
family (llada, llada2_moe, minimind, llama, qwen2, qwen3) is written as its public checkpoints are: where those bring modelling
code, ours stands under the same names and theirs may replace it; classes of transformers read it without, causally. --model takes
a folder or a hub id of any of these families.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tasks.environment import quiet

OWN = "unmask"
BAD_INPUT = 2
DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 after one message about what a person can mend."""
    quiet()
    options = parse(arguments)
    try:
        export(options.model, options.to, options.family, options.dtype, options.name, Path.cwd())
    except ValueError as error:
        print(f"export: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"export: {options.model} is in {options.to} ({options.family})")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    from model.registry import names

    parser = argparse.ArgumentParser(
        prog="python -m tasks.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="checkpoint folder or hub id")
    parser.add_argument(
        "--to", required=True, type=Path, help="folder to write; an export that stands there is replaced"
    )
    parser.add_argument("--family", default=OWN, choices=(OWN, *names("family")), help="layout of the files")
    parser.add_argument("--dtype", default=None, choices=DTYPES, help="of the weights; otherwise as they are")
    parser.add_argument("--name", default=None, help="the model's name in its card; otherwise the folder's")
    return parser.parse_args(arguments)


def export(model: str, target: Path, family: str, dtype_name: str | None, name: str | None, root: Path) -> None:
    """Loads the checkpoint and publishes the export in one rename; ValueError before anything is written."""
    import torch

    from model.checkpoints.store import export_checkpoint, load_checkpoint, save_checkpoint
    from model.hugging_face.bundle import AUTO_MAP, FILE, family_files, modelling_file
    from model.hugging_face.card import model_card
    from model.registry import resolve

    _refuse_foreign_folder(target)
    source = root / model if (root / model).is_dir() else model
    checkpoint = load_checkpoint(source)
    dtype = getattr(torch, dtype_name) if dtype_name else None
    card = model_card(card_facts(checkpoint, model, name or target.name, family, root))
    target.parent.mkdir(parents=True, exist_ok=True)
    network, config, folder = checkpoint.network, checkpoint.config, checkpoint.folder
    if family == OWN:
        texts = {"README.md": card, FILE: modelling_file()}
        save_checkpoint(target, network, config, folder, dtype, AUTO_MAP, texts)
    else:
        layout = resolve("family", family)
        stored = str(dtype or network.embedding.weight.dtype).removeprefix("torch.")
        auto_map, files = family_files(layout, config, layout.write_config(config, stored))
        texts = {"README.md": card, **files}
        export_checkpoint(target, network, config, family, folder, dtype, auto_map=auto_map, texts=texts)


def _refuse_foreign_folder(target: Path) -> None:
    if target.exists() and not (target.is_dir() and ((target / "config.json").is_file() or not any(target.iterdir()))):
        raise ValueError(f"--to {target} exists and is no earlier export: name a new folder")


def card_facts(checkpoint: Any, model: str, name: str, family: str, root: Path) -> Any:
    """What the pipeline in `root` has recorded about a checkpoint; little for one that it did not make."""
    from model.hugging_face.card import CardFacts
    from model.network.transformer import num_parameters

    is_ours = checkpoint.folder.resolve().parent == (root / "data/models").resolve()
    made = checkpoint.folder.name if is_ours else None
    stage = stage_of(root, made) if made else None
    lineage = lineage_of(root, stage) if stage else {"source": model}
    parent = lineage.get("parent", "")
    return CardFacts(
        name=name,
        config=checkpoint.config,
        parameters=num_parameters(checkpoint.network),
        layout=family,
        lineage=lineage,
        points=measured_points(root / f"data/metrics/evaluate/{made}.json") if made else [],
        training=_numbers(root / f"data/metrics/{made}.json") if made else {},
        base_model=parent if _is_hub_id(parent, root) else model if _is_hub_id(model, root) else None,
    )


def _is_hub_id(text: str, root: Path) -> bool:
    return text.count("/") == 1 and not (root / text).exists() and not text.startswith(("/", ".", "~"))


def stage_of(root: Path, made: str) -> str | None:
    """The address of the stage whose checkpoint data/models/<made> is."""
    import yaml

    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, declared in stages.items():
        outs = declared.get("do", declared).get("outs", [])
        if f"data/models/{made}" in outs:
            return name
        if made in declared.get("foreach", []) and "data/models/${item}" in outs:
            return f"{name}@{made}"
    return None


def lineage_of(root: Path, stage: str) -> dict[str, str]:
    """Preset, parent, data, code and MLflow run of a stage's present result."""
    from tasks.fingerprint import fingerprint
    from tasks.parameters import load_params

    params = load_params(root / "params.yaml")
    section = params.get(stage.partition("@")[0]) or {}
    try:
        identity = fingerprint(root, stage)
    except ValueError as error:  # what it was made from is gone
        return {"stage": stage, "preset": str(params.get("preset", "")), "not known": str(error)}
    found = run_of(root, stage, identity.key)
    return {
        "stage": stage,
        "preset": str(params.get("preset", "")),
        "parent": str(section.get("start_from") or ", ".join(_parents(root, stage))),
        "data (md5 of data/raw)": identity.data_hash,
        "key (command, inputs, parameters)": identity.key,
        "MLflow run": found.get("run", "none with this key: parameters or code have changed since"),
        "commit": found.get("commit", ""),
    }


def _parents(root: Path, stage: str) -> list[str]:
    import yaml

    name, _, instance = stage.partition("@")
    declared = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][name]
    deps = declared.get("do", declared).get("deps", [])
    return [dep.replace("${item}", instance) for dep in deps if dep.startswith("data/models/")]


def run_of(root: Path, stage: str, key: str) -> dict[str, str]:
    """Id and commit of the newest finished MLflow run of a stage with this key."""
    from model.training.tracking import KEY_TAG, open_store

    if not (root / "mlruns/mlflow.db").is_file():
        return {}
    client, experiment = open_store(root)
    wanted = f"tags.`{KEY_TAG}` = '{key}' and attributes.run_name = '{stage}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return {"run": runs[0].info.run_id, "commit": runs[0].data.tags.get("unmask.git", "")} if runs else {}


def measured_points(file: Path) -> list[dict[str, Any]]:
    """Every operating point of the test split that was evaluated, the main ones first."""
    if not file.is_file():
        return []
    figures = json.loads(file.read_text(encoding="utf-8"))
    main = figures.get("test", {})
    points = main | {
        name: point for name, point in figures.get("sweep", {}).get("test", {}).items() if name not in main
    }
    return [{"name": name, **point} for name, point in points.items() if "score" in point]


def _numbers(file: Path) -> dict[str, float]:
    if not file.is_file():
        return {}
    values = json.loads(file.read_text(encoding="utf-8"))
    return {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool) and "/" in k}


if __name__ == "__main__":
    sys.exit(main())

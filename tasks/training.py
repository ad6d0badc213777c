"""What every training stage does around its method: rows in, `Trainer`, checkpoint, curve and numbers out."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.network_weights import is_sharded
from model.checkpoints.store import Checkpoint, load_checkpoint, save_checkpoint
from model.curricula import RECIPE_KEYS, Recipe
from model.hiding import HidingConfig
from model.network.config import NetworkConfig
from model.network.transformer import Transformer, num_parameters
from model.objectives.curriculum import Curriculum
from model.objectives.mask_noise import NoisyMasks
from model.objectives.objective import Objective
from model.objectives.penalties import Penalties
from model.objectives.variable_length import VariableLength
from model.objectives.within_row import WithinRow
from model.registry import resolve
from model.text.packing import TokenRows
from model.training.config import TrainingConfig
from model.training.loader import RowLoader
from model.training.loop import Trainer
from model.training.resume_points import Progress
from model.training.sharding import processes, sharding
from tasks.launch import KEYS as LAUNCH_KEYS
from tasks.stage import Stage

# How a network reads once it was trained with an objective.
ATTENTION_OF = {"masked_diffusion": "bidirectional", "block_diffusion": "block_causal"}
OBJECTIVE_OF = {attention: objective for objective, attention in ATTENTION_OF.items()}


def parent_checkpoint(stage: Stage, default: str) -> Checkpoint:
    """The network this stage starts from: `section.start_from` (a folder or hub id of any family) or what the stage before made.

    It is loaded straight to the device that will train it, in float32: the optimizer needs the small differences. Under FSDP2
    each process loads its own part.
    """
    source = source_of(stage, stage.section.get("start_from"), default)
    return load_checkpoint(source, device=training_device(), shard=shard_of(stage))


def shard_of(stage: Stage) -> Callable[[Transformer], None] | None:
    """How this run cuts a network over its processes, if it does."""
    return sharding(stage.section.get("precision", "float32"))


def source_of(stage: Stage, given: str | None, default: str) -> Path | str:
    """A checkpoint as a person names it: a folder under the root, or as it stands (an absolute path, a hub id)."""
    if given is None:
        return stage.root / f"data/models/{default}"
    return stage.root / given if (stage.root / given).exists() else given


def training_device() -> str:
    """This process' own GPU, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def diffusion_objective(
    name: str, config: NetworkConfig, hiding: HidingConfig, block_tokens: int | None = None
) -> Objective:
    """The named diffusion objective for a network's mask token and block grid (or another block size)."""
    if name not in ATTENTION_OF:
        raise ValueError(f"objective '{name}' must be one of {', '.join(ATTENTION_OF)} here")
    if config.mask_token_id is None:
        raise ValueError(
            "the network has no mask token: an autoregressive one goes through convert_to_diffusion first; for a diffusion "
            "network whose tokenizer and config.json name none, write mask_token_id into its config.json"
        )
    options: dict[str, Any] = {"mask_token_id": config.mask_token_id, "hiding": hiding}
    if name == "block_diffusion":
        options["block_tokens"] = block_tokens or config.block_tokens
    return resolve("objective", name)(**options)


def likelihood_objective(name: str, config: NetworkConfig) -> Objective:
    """The same objective drawing `exact_count`: the unbiased bound that validation reports."""
    return diffusion_objective(name, config, HidingConfig("exact_count"))


def training_objective(
    name: str,
    config: NetworkConfig,
    section: Mapping[str, Any],
    row_tokens: int,
    wrap: Callable[[Objective], Objective] = lambda base: base,
) -> Objective | Curriculum:
    """The named diffusion objective with the section's switches (model/curricula.py) around it; `wrap` is CAP, a teacher ..."""
    recipe, steps = Recipe.from_section(section), section["steps"]
    recipe.check(name, row_tokens, config.block_tokens)

    def at(step: int) -> Objective:
        blocks, shares, noise = recipe.block_curriculum, recipe.ratio_curriculum, recipe.mask_noise
        hiding = replace(recipe.hiding, share=shares.share(step, steps)) if shares else recipe.hiding
        made = diffusion_objective(name, config, hiding, blocks and blocks.block_tokens(step, steps))
        if recipe.attention_within == "row":
            made = WithinRow(made)
        if recipe.variable_length:
            made = VariableLength(made, recipe.variable_length)
        if noise and step < noise.steps:
            made = NoisyMasks(made, noise.scale, config.hidden_size)
        made = wrap(made)
        if recipe.repeat_penalty or recipe.z_loss:
            special = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
            ignored = tuple(token for token in special if token is not None)
            made = Penalties(made, recipe.repeat_penalty, recipe.z_loss, ignored)
        return made

    changes = recipe.block_curriculum or recipe.ratio_curriculum or recipe.mask_noise
    return Curriculum(at) if changes else at(0)


def train_diffusion(stage: Stage, default_parent: str, corpus: str) -> None:
    """The section's own objective and switches, from the checkpoint of before or `start_from`; the network reads as it asks."""
    parent = parent_checkpoint(stage, default_parent)
    name = stage.section["objective"]
    objective = training_objective(name, parent.config, stage.section, row_tokens(stage))
    parent.network.config = replace(parent.network.config, attention=ATTENTION_OF[name])
    validation = likelihood_objective(name, parent.config)
    train_stage(stage, parent.network, objective, validation, corpus, ("objective", *RECIPE_KEYS), parent.folder)


def train_stage(
    stage: Stage,
    network: Transformer,
    objective: Objective | Curriculum,
    validation: Objective,
    corpus: str,
    method_keys: Iterable[str],
    tokenizer_folder: Path,
    validated_on: str | None = None,
    name: str | None = None,
    own_rows: Path | None = None,
) -> None:
    """Trains on data/tokens/<corpus> and publishes data/models, data/curves and data/metrics under `name`.

    None: validation rows are of the same corpus, and the name is the instance's or the stage's. `own_rows`, the folder of a
    model's own answers, is trained on instead of the corpus.
    """
    config = training_config(stage, method_keys)
    name = name or stage.instance or stage.name
    held_out = TokenRows(*token_folders(stage.root / "data/tokens", validated_on or corpus)[0]["validation"])
    written = held_out.layout.vocabulary_size
    if written > network.config.embedding_rows:
        raise ValueError(
            f"data/tokens holds ids of a vocabulary of {written}, the network has {network.config.embedding_rows} rows: they "
            "belong to different tokenizers; set tokenize.tokenizer to the checkpoint's"
        )
    loader = training_rows(stage, corpus, config.batch_rows, own_rows)
    trainer = Trainer(
        network,
        objective,
        validation,
        loader,
        held_out,
        config,
        stage.work,
        stage.tracker,
        stage.seed,
        stage.address,
    )
    progress = trainer.run()
    publish(stage, name, trainer.raw_network, tokenizer_folder, progress)


def training_config(stage: Stage, method_keys: Iterable[str]) -> TrainingConfig:
    """What the section says about the loop; ValueError for a key that neither loop nor method knows."""
    return TrainingConfig.from_section(stage.section, (*method_keys, *LAUNCH_KEYS, "threads", "start_from"))


def training_rows(stage: Stage, corpus: str, batch_rows: int, own_rows: Path | None = None) -> RowLoader:
    """The training rows of a corpus kind, mixed by weight, or those of `own_rows`, in the order of the seed."""
    if own_rows:
        return RowLoader([(own_rows, 1.0)], batch_rows, stage.seed)
    rows, weights = token_folders(stage.root / "data/tokens", corpus)
    return RowLoader(list(zip(rows["train"], weights, strict=True)), batch_rows, stage.seed)


def row_tokens(stage: Stage) -> int:
    """Length of the rows of data/tokens, pairs aside: a row of them holds two."""
    metas = (stage.root / "data/tokens").glob("*/train/*/meta.json")
    folder = next(meta for meta in metas if meta.parts[-4] != "preferences")
    return int(json.loads(folder.read_text())["row_tokens"])


def token_folders(tokens: Path, corpus: str) -> tuple[dict[str, list[Path]], list[float]]:
    """Shard folders of a corpus kind (pretrain, instructions) by split, and each corpus' weight in the mixture."""
    names = sorted(path.name for path in (tokens / corpus / "train").iterdir())
    summary = json.loads((tokens / "mixture.json").read_text())
    weights = [float(summary[corpus][name]) for name in names]
    return {split: [tokens / corpus / split / name for name in names] for split in ("train", "validation")}, weights


def publish(
    stage: Stage,
    name: str,
    network: Transformer,
    tokenizer_folder: Path,
    progress: Progress,
) -> None:
    """Checkpoint, deterministic curve and deterministic numbers of a finished training run."""
    made = stage.work / "checkpoint"
    is_first = processes().is_main_process
    if is_first or is_sharded(network):  # all of those that share it give their parts
        save_checkpoint(made, network, network.config, tokenizer_folder)
    if not is_first:
        return
    stage.publish(made, f"data/models/{name}")
    curve = stage.work / "curve.csv"
    columns = ["step", *sorted({key for point in progress.curve for key in point} - {"step"})]
    with curve.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(progress.curve)
    stage.tracker.log_artifact(curve, "plots")
    stage.tracker.log_figure(draw_curves(name, progress.curve), "plots/curves.png")
    stage.publish(curve, f"data/curves/{name}.csv")
    publish_metrics(
        stage,
        name,
        {
            "steps": progress.step,
            "stopped_early": progress.stopped_early,
            "parameters": num_parameters(network),
            **last_values(progress),
        },
    )
    stage.tracker.log_checkpoint(stage.root / f"data/models/{name}")


def draw_curves(name: str, curve: list[dict[str, float]]) -> Any:
    """Training loss and bits per byte on held-out text against the step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("train/loss", "val/bits_per_byte"), strict=True):
        points = [(point["step"], point[key]) for point in curve if key in point]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        axes.set(xlabel="step", ylabel=key)
    figure.suptitle(name)
    return figure


def last_values(progress: Progress) -> dict[str, float]:
    """The last value of every measured series."""
    values: dict[str, float] = {}
    for point in progress.curve:
        values |= {key: value for key, value in point.items() if key != "step"}
    return values


def publish_metrics(stage: Stage, name: str, values: dict[str, Any]) -> None:
    """Writes data/metrics/<name>.json, which DVC tracks: nothing in it may differ between equal runs."""
    made = stage.work / "metrics.json"
    made.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    stage.publish(made, f"data/metrics/{name}.json")

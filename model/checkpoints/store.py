"""A checkpoint is a folder in the Hugging Face manner: config.json, model.safetensors, and the tokenizer's files.

Writing is atomic: the folder appears whole or not at all.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.network.config import NetworkConfig
from model.network.transformer import Transformer

MODEL_TYPE = "unmask"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded network with where it came from; `folder` also holds its tokenizer."""

    network: Transformer
    config: NetworkConfig
    folder: Path


def save_checkpoint(folder: Path, network: Transformer, config: NetworkConfig, tokenizer_folder: Path) -> None:
    """Publish weights, configuration and tokenizer under `folder`, replacing what was there in one rename."""
    temporary = folder.with_name(folder.name + ".writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    values = {"model_type": MODEL_TYPE, **config.to_dict()}
    (temporary / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    save_file(_owned_tensors(network, config), temporary / "model.safetensors", metadata={"format": "pt"})
    for name in _TOKENIZER_FILES:
        if (tokenizer_folder / name).exists():
            shutil.copyfile(tokenizer_folder / name, temporary / name)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def load_config(folder: Path) -> NetworkConfig:
    """The configuration of a checkpoint folder; ValueError that says what is wrong with it."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json")
    values = json.loads(path.read_text())
    model_type = values.pop("model_type", None)
    if model_type != MODEL_TYPE:
        raise ValueError(
            f"{path}: model_type '{model_type}' is not '{MODEL_TYPE}': only checkpoints that Unmask saved load here"
        )
    return NetworkConfig.from_dict(values)


def load_checkpoint(folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Checkpoint:
    """The network of a folder in eval mode; ValueError that names every missing, extra or misshapen tensor."""
    folder = Path(folder)
    config = load_config(folder)
    network = Transformer(config)
    try:
        tensors = load_file(folder / "model.safetensors", device=device)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{folder / 'model.safetensors'} cannot be read ({error}): copy or download it again"
        ) from error
    _check(tensors, network, config, folder)
    network.load_state_dict(tensors, strict=False)
    return Checkpoint(network.to(device=device, dtype=dtype).eval(), config, folder)


def _owned_tensors(network: Transformer, config: NetworkConfig) -> dict[str, torch.Tensor]:
    """The state to save: a tied head is the embedding and is not stored twice."""
    tensors = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    if config.tie_embeddings:
        tensors.pop("unembedding.weight")
    return tensors


def _check(tensors: dict[str, torch.Tensor], network: Transformer, config: NetworkConfig, folder: Path) -> None:
    wanted = {name: tuple(value.shape) for name, value in _owned_tensors(network, config).items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    problems = [f"missing {name} {wanted[name]}" for name in wanted.keys() - found.keys()]
    problems += [f"unexpected {name} {found[name]}" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {found[name]}, the configuration wants {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if problems:
        raise ValueError(f"{folder}: weights do not fit config.json: " + "; ".join(sorted(problems)))

"""A checkpoint is a folder in the Hugging Face manner: config.json, weights in safetensors, and the tokenizer's files.

Ours and every public family's go in; they come out in our names (`save_checkpoint`) or a family's (`export_checkpoint`).
Writing is atomic: the folder appears whole or not at all.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from model.checkpoints.families.family import GENERIC_KEYS, Family
from model.checkpoints.network_weights import empty_network, empty_sharded_network, fill, is_sharded, store
from model.checkpoints.source import checkpoint_folder
from model.checkpoints.tokenizer_fit import fitted
from model.checkpoints.weight_files import MAXIMUM_SHARD_BYTES, PICKLES, WeightFiles, weight_files
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.registry import names, resolve

MODEL_TYPE, ARCHITECTURE = "unmask", "UnmaskForCausalLM"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded network with where it came from; `folder` also holds its tokenizer. `family` is None for our own layout."""

    network: Transformer
    config: NetworkConfig
    folder: Path
    family: str | None = None


def save_checkpoint(
    folder: Path,
    network: Transformer,
    config: NetworkConfig,
    tokenizer_folder: Path,
    dtype: torch.dtype | None = None,
    auto_map: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Publish weights, configuration and tokenizer under `folder`, replacing what was there in one rename.

    Where processes share the network (FSDP2), each calls this and the first one writes.
    An export also brings `texts`, files by name, and the `auto_map` that says which of them is its modelling file.
    """
    values = {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], **config.to_dict()}
    values |= {"auto_map": dict(auto_map)} if auto_map else {}
    with _published(folder, network) as temporary:
        store(network, config, None, temporary, MAXIMUM_SHARD_BYTES, dtype)
        _write_beside(temporary, values, tokenizer_folder, texts)


def export_checkpoint(
    folder: Path,
    network: Transformer,
    config: NetworkConfig,
    family: str,
    tokenizer_folder: Path | None = None,
    dtype: torch.dtype | None = None,
    maximum_shard_bytes: int = MAXIMUM_SHARD_BYTES,
    auto_map: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Publish a network as a public family's folder: its config keys, tensor names, shapes and index; `texts` beside them.

    `auto_map` is for a family whose public config.json has none.

    ValueError, before anything is written, when the family has no key or tensor for something this network has. What a key cannot
    say but changes no tensor (such as the mask token's id) stands under `unmask` in config.json, and `load_checkpoint` reads it.
    """
    layout: Family = resolve("family", family)
    values = layout.write_config(config, str(dtype or network.embedding.weight.dtype).removeprefix("torch."))
    values |= {"auto_map": dict(auto_map)} if auto_map else {}
    with _published(folder, network) as temporary:
        store(network, config, layout, temporary, maximum_shard_bytes, dtype)
        _write_beside(temporary, values, tokenizer_folder, texts)


def load_config(folder: Path | str) -> NetworkConfig:
    """The configuration of a checkpoint folder of ours or of any family; ValueError that says what is wrong with it."""
    return _read_config(Path(folder))[0]


def load_checkpoint(
    source: Path | str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    shard: Callable[[Transformer], Any] | None = None,
) -> Checkpoint:
    """The network of a folder, a file of weights beside its config.json, or a model of the hub, in eval mode.

    It is built empty on `device` in `dtype` (None: float32) and filled tensor by tensor. On the device `meta` everything is
    checked and nothing is read. `shard` cuts the empty network over processes (FSDP2's fully_shard on its layers and itself);
    each then keeps its own part of every tensor. ValueError that names every missing, extra or misshapen tensor, every unknown
    key, or the tokenizer's token that does not fit. Code that comes with a checkpoint is never run.
    """
    path = Path(source)
    is_file = path.is_file() and path.suffix in (".safetensors", *PICKLES)
    folder = path.parent if is_file else checkpoint_folder(source)
    config, family = _read_config(folder)
    dtype = dtype or torch.float32
    network = empty_sharded_network(config, device, dtype, shard) if shard else empty_network(config, device, dtype)
    fill(network, config, WeightFiles([path] if is_file else weight_files(folder)), family, folder)
    return Checkpoint(network.eval(), config, folder, family and family.name)


def family_of(values: dict[str, Any]) -> Family | None:
    """The family that a config.json belongs to, None for our own layout; ValueError that lists the known types."""
    model_type = values.get("model_type")
    if model_type == MODEL_TYPE:
        return None
    families = [resolve("family", name) for name in names("family")]
    for family in families:
        if family.model_type == model_type and family.recognises(values):
            return family
    known = ", ".join(sorted({MODEL_TYPE, *(family.model_type for family in families)}))
    raise ValueError(f"model_type {model_type!r} is none that can be read: {known}")


def _read_config(folder: Path) -> tuple[NetworkConfig, Family | None]:
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
        if not isinstance(values, dict):
            raise ValueError("it is not a dictionary")
        family = family_of(values)
        if family is not None:
            config = family.read_config(values)
        else:
            config = NetworkConfig.from_dict({key: value for key, value in values.items() if key not in GENERIC_KEYS})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return fitted(config, folder), family


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"key(s) given twice: {', '.join(twice)}")
    return dict(pairs)


@contextmanager
def _published(folder: Path, network: Transformer) -> Iterator[Path | None]:
    """A new folder beside `folder` that takes its place when the block ends without an error.

    Where processes share the network, all come here and only the first one has a folder; none goes on before it stands.
    """
    shared = is_sharded(network)
    if shared and distributed.get_rank() > 0:
        yield None
        distributed.barrier()
        return
    temporary = folder.with_name(folder.name + ".writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    before = folder.with_name(folder.name + ".before")  # kept until the new folder stands: a kill here loses nothing
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        os.replace(folder, before)
    os.replace(temporary, folder)
    shutil.rmtree(before, ignore_errors=True)
    if shared:
        distributed.barrier()


def _write_beside(
    folder: Path | None, values: dict[str, Any], tokenizer_folder: Path | None, texts: Mapping[str, str] | None
) -> None:
    """config.json, the tokenizer's files and any texts beside the weights; nothing without a folder."""
    if folder is None:
        return
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in _TOKENIZER_FILES:
        if tokenizer_folder is not None and (tokenizer_folder / name).exists():
            shutil.copyfile(tokenizer_folder / name, folder / name)
    for name, text in (texts or {}).items():
        (folder / name).write_text(text, encoding="utf-8")

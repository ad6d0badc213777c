"""A network's weights from files and into files, one tensor at a time, in place on the target device and in the target dtype."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.checkpoints.families.family import Family
from model.checkpoints.tensor_map import HEAD, Place, places, tied_head
from model.checkpoints.weight_files import WeightFiles, write_weights
from model.network.config import NetworkConfig
from model.network.transformer import Transformer


def empty_network(config: NetworkConfig, device: str | torch.device, dtype: torch.dtype) -> Transformer:
    """A network whose parameters are allocated once, where they will stay, and not filled; on `meta` it costs no memory.

    Buffers stay float32: a router's bias decides by small differences.
    """
    with torch.device("meta"), _NoInitialValues():
        network = Transformer(config)
    for module in network.modules():
        if config.tie_embeddings and module is network.unembedding:
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=device, dtype=dtype)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros_like(buffer, device=device))
    network.tie()
    return network


def empty_sharded_network(
    config: NetworkConfig, device: str | torch.device, dtype: torch.dtype, shard: Callable[[Transformer], Any]
) -> Transformer:
    """As `empty_network`, cut by `shard` (FSDP2's fully_shard) before anything is allocated: a process only holds its part."""
    network = empty_network(config, "meta", dtype)
    shard(network)
    network.to_empty(device=device)
    for buffer in network.buffers():
        buffer.zero_()
    return network


class _NoInitialValues(TorchFunctionMode):
    """Skips random initial values: on the meta device they would import torch's whole compiler (over a second) to do nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def owned(network: nn.Module, config: NetworkConfig) -> dict[str, Tensor]:
    """The tensors that are a network's own state: a tied head is the embedding and does not count twice."""
    tensors = dict(network.state_dict(keep_vars=True))
    if config.tie_embeddings:
        tensors.pop(HEAD)
    return tensors


def fill(network: nn.Module, config: NetworkConfig, files: WeightFiles, family: Family | None, folder: Path) -> None:
    """Copies every stored tensor into its place; ValueError, before anything is read, that names all that does not fit.

    A parameter may be sharded over processes (DTensor): each process then keeps its own part of one tensor at a time. A network
    on the meta device is checked and stays empty.
    """
    targets = owned(network, config)
    wanted = places(family, config, {name: tuple(value.shape) for name, value in targets.items()})
    head = tied_head(family, config)
    if problems := _problems(wanted, files, head, family.derived_tensors if family else r"(?!)"):
        raise ValueError(f"{folder}: weights do not fit config.json: " + "; ".join(problems))
    if all(target.is_meta for target in targets.values()):
        return
    of_ours: dict[str, list[Place]] = {}
    for place in wanted:
        of_ours.setdefault(place.ours, []).append(place)
    with torch.no_grad():
        for name, target in targets.items():
            _fill_one(target, of_ours[name], files)
    if head in files.files:
        _check_tied(files, head, next(place.theirs for place in wanted if place.ours == "embedding.weight"), folder)


def _fill_one(target: Tensor, parts: list[Place], files: WeightFiles) -> None:
    if not hasattr(target, "device_mesh"):
        for place in parts:
            place.part(target).copy_(files.read(place.theirs))
        return
    from torch.distributed.tensor import distribute_tensor

    whole = torch.empty(target.shape, dtype=target.dtype)
    _fill_one(whole, parts, files)
    # Every process reads the same file, so none has to send anything.
    shard = distribute_tensor(whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.to_local().copy_(shard.to_local())


def _problems(wanted: list[Place], files: WeightFiles, head: str | None, derived: str) -> list[str]:
    """Everything about the stored tensors that does not fit, one sentence part each."""
    by_name = {place.theirs: place for place in wanted}
    problems = [f"{name} is in two files" for name in files.repeated]
    problems += [f"missing {name} {by_name[name].shape}" for name in by_name.keys() - files.files.keys()]
    for name in files.files:
        if name == head or re.fullmatch(derived, name):
            continue
        if name not in by_name:
            problems.append(f"unexpected {name} {files.shape(name)}")
        elif files.shape(name) != by_name[name].shape:
            problems.append(f"{name} has shape {files.shape(name)}, the configuration wants {by_name[name].shape}")
        elif not files.is_readable(name):
            problems.append(
                f"{name} is stored as {files.dtype(name)}: quantised weights are not read, take the original ones"
            )
    return sorted(problems)


def _check_tied(files: WeightFiles, head: str, embedding: str, folder: Path) -> None:
    if files.shape(head) != files.shape(embedding) or not torch.equal(files.read(head), files.read(embedding)):
        raise ValueError(
            f"{folder}: {head} differs from {embedding}, but the configuration ties them: correct config.json (untied) or "
            f"remove {head}"
        )


def is_sharded(network: nn.Module) -> bool:
    """Whether this process holds only a part of the parameters (DTensor)."""
    return any(hasattr(parameter, "device_mesh") for parameter in network.parameters())


def store(
    network: nn.Module, config: NetworkConfig, family: Family | None, folder: Path | None, maximum_shard_bytes: int,
    dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Writes the network's weights under `folder`, under a family's names or ours, in `dtype` (None: as they are).

    Where processes share the parameters, each must call this, one with a folder and the others with None: they give their parts.
    """
    tensors = owned(network, config)
    by_name = {
        place.theirs: place
        for place in places(family, config, {name: tuple(value.shape) for name, value in tensors.items()})
    }
    head = tied_head(family, config)
    if family is not None and family.stores_tied_head and head is not None:
        embedding = next(place for place in by_name.values() if place.ours == "embedding.weight")
        by_name[head] = Place(head, embedding.ours, embedding.shape, embedding.rows)
    gathered: dict[str, Tensor] = {}  # one tensor: several stored ones may be parts of it

    def read(name: str) -> Tensor:
        place = by_name[name]
        if place.ours not in gathered:
            gathered.clear()
            gathered[place.ours] = _whole(tensors[place.ours])
        part = place.part(gathered[place.ours])
        return part.to("cpu", _stored_dtype(tensors[place.ours], dtype), copy=True).contiguous()

    write_weights(folder, _meta(by_name, tensors, dtype), read, maximum_shard_bytes)


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "device_mesh") else tensor


def _meta(by_name: Mapping[str, Place], tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {
        name: torch.empty(place.shape, dtype=_stored_dtype(tensors[place.ours], dtype), device="meta")
        for name, place in by_name.items()
    }


def _stored_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Only parameters change their dtype: see `empty_network`."""
    return dtype if dtype is not None and isinstance(tensor, nn.Parameter) else tensor.dtype

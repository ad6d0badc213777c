"""A network cut over processes (FSDP2), and the resume points of one.

`accelerate launch --config_file accelerate/fsdp2.yaml -m tasks.X` starts a stage in several processes; each holds its part of
every parameter, gradient and optimizer state, and gathers a layer when it is used. Of a frozen teacher too.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn

from model.network.experts import Router
from model.network.norms import RMSNorm
from model.network.transformer import Transformer


def sharding(precision: str) -> Callable[[Transformer], None] | None:
    """How to cut a network that computes in `precision`; None where every process holds whole networks."""
    if not _says_yes("ACCELERATE_USE_FSDP") or processes().num_processes == 1:
        return None
    return lambda network: _shard(network, precision)


def _says_yes(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def processes() -> PartialState:
    """The processes of this run, joined on first use. ValueError where a launcher started several that would not meet."""
    state, started = PartialState(cpu=_says_yes("ACCELERATE_USE_CPU")), int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise ValueError(
            f"{started} processes were started and each would train alone: no GPU was found. To train on CPUs all the same, set "
            "ACCELERATE_USE_CPU=true"
        )
    return state


def _shard(network: Transformer, precision: str) -> None:
    """One unit per layer, the embedding, the head and the rest.

    In bfloat16 the layers' matrices and the head are gathered narrow and reduced in float32. Norms, routers and the embedding
    are gathered as they are, so that the network computes what one process computes under autocast.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    state = processes()
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = narrow if precision == "bfloat16" else MixedPrecisionPolicy()
    for layer in network.layers:
        if small := [module for module in layer.modules() if precision == "bfloat16" and _is_exact(module)]:
            fully_shard(small, mesh=mesh)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    if not network.config.tie_embeddings:
        fully_shard(network.embedding, mesh=mesh)
        fully_shard(network.unembedding, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(
        network, "head"
    )  # objectives call it after the forward: a tied head is gathered once more


def _is_exact(module: nn.Module) -> bool:
    return isinstance(module, Router) or (isinstance(module, RMSNorm) and module.weight is not None)


def save_shards(folder: Path, network: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Every process writes its parts as safetensors under `folder`; any number of processes can read them."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save(network.state_dict() | _optimizer_state(network, optimizers), storage_writer=writer)


def load_shards(folder: Path, network: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Fills the network and its new optimizers from what `save_shards` wrote."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    reader = HuggingFaceStorageReader(str(folder))
    parameters = dict(network.named_parameters())
    optimizers = list(optimizers)
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        name, separator, entry = key.partition(_STATE)
        if separator:
            owner = next(
                o for o in optimizers for group in o.param_groups for p in group["params"] if p is parameters[name]
            )
            like = parameters[name]
            whole = stored.size == like.shape
            owner.state[like][entry] = torch.zeros_like(like) if whole else torch.zeros(stored.size)
    state = network.state_dict() | _optimizer_state(network, optimizers)
    load(state, storage_reader=reader)


_STATE = "//"  # parameter // entry: no parameter's name has it


def _optimizer_state(network: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        f"{names[id(parameter)]}{_STATE}{entry}": value
        for optimizer in optimizers
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
    }

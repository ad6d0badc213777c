"""A dry run of a preset's training stage: is the model what the family's checkpoints hold, and what does training it take?

    python -m tasks.plan presets/llada-8b-distill.yaml
    python -m tasks.plan presets/llada2-mini-cap.yaml --gpus 16

Nothing is downloaded or allocated. The network of the preset is built on the meta device and every tensor is placed in the
family's map; a checkpoint that is here already (start_from is a folder) is compared with it, tensor by tensor. Activations
are what the graph of one slice keeps for its backward pass, found by building that graph without memory.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.environment import quiet
from tasks.launch import DISTRIBUTIONS, processes_of
from tasks.parameters import load_params

BAD_INPUT = 2
GIB = 2**30
KEYS = {"stage", "family", "gpus", "gpu_memory_gib"}


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. `teacher`: a frozen one; `copies`: weights that autocast narrows for a forward; `gathered`: what is whole
    for a while where processes share the network (see model/training/sharding.py)."""

    weights: int
    gradients: int
    optimizer: int
    teacher: int
    copies: int
    gathered: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 after one message about what a person can mend."""
    quiet()
    parser = argparse.ArgumentParser(
        prog="python -m tasks.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("params", type=Path, nargs="?", default=Path("params.yaml"), help="a preset, or params.yaml")
    parser.add_argument("--gpus", type=int, default=None, help="instead of the preset's plan.gpus")
    options = parser.parse_args(arguments)
    try:
        print(plan(load_params(options.params), options.gpus, Path.cwd()))
    except ValueError as error:
        print(f"plan: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def plan(params: dict[str, Any], gpus: int | None, root: Path) -> str:
    """The report; ValueError when the preset does not say enough or the model does not fit its family."""
    from model.network.config import NetworkConfig
    from tasks.training import ATTENTION_OF

    wanted = params.get("plan")
    if not isinstance(wanted, dict) or set(wanted) != KEYS:
        raise ValueError(
            "the preset needs a line like plan: {stage: tune_cap, family: llada2_moe, gpus: 8, gpu_memory_gib: 80}"
        )
    stage, section = wanted["stage"], params[wanted["stage"]]
    config = NetworkConfig.from_dict(
        {
            **params["network"],
            "vocabulary_size": params["tokenize"]["vocabulary_size"],
            "block_tokens": params["tokenize"]["block_tokens"],
            "attention": ATTENTION_OF[section.get("objective") or _objective(wanted["family"])],
        }
    )
    lines = [f"{params['preset']}, stage {stage}, starts from {section.get('start_from', 'the stage before')}"]
    lines += [launched_by(stage, section, gpus or wanted["gpus"])]
    lines += [check_against_family(config, wanted["family"])]
    lines += [*check_against_folder(config, section.get("start_from"), root)]
    return "\n".join([*lines, *describe_training(config, params, section, gpus or wanted["gpus"], wanted)])


def launched_by(stage: str, section: dict[str, Any], gpus: int) -> str:
    """How the stage starts on that many GPUs; ValueError where its section says another number of processes."""
    number = processes_of(section)
    if number not in (1, gpus):
        raise ValueError(f"{stage}.processes is {number} and the plan counts {gpus} GPUs: one process serves one GPU")
    instance = " --instance tune_cap" if stage == "tune_cap" else ""
    how = section.get("distribution", DISTRIBUTIONS[0])
    return f"python -m tasks.{stage}{instance} ({stage}.processes: {gpus}, distribution: {how})"


def _objective(family: str) -> str:
    return "block_diffusion" if family == "llada2_moe" else "masked_diffusion"


def check_against_family(config: Any, family_name: str) -> str:
    """One line; ValueError for a field or tensor the family has no word for, or a shape its map would split otherwise."""
    from model.checkpoints.network_weights import owned
    from model.checkpoints.tensor_map import places
    from model.registry import resolve

    family = resolve("family", family_name)
    keys = family.write_config(config, "bfloat16")
    tensors = owned(meta_network(config), config)
    stored = places(family, config, {name: tuple(value.shape) for name, value in tensors.items()})
    sizes: dict[str, int] = {}
    for place in stored:
        if tuple(place.part(tensors[place.ours]).shape) != place.shape:
            raise ValueError(
                f"{place.theirs} {place.shape} is no part of {place.ours} {tuple(tensors[place.ours].shape)}"
            )
        sizes[place.ours] = sizes.get(place.ours, 0) + _count(place.shape)
    if wrong := [name for name, value in tensors.items() if sizes.get(name) != value.numel()]:
        raise ValueError(f"the map of {family_name} does not cover {', '.join(wrong)}")
    return f"family {family_name}: {len(tensors)} tensors, {len(stored)} in its layout, {len(keys)} config keys: all placed"


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def check_against_folder(config: Any, source: str | None, root: Path) -> list[str]:
    """Compares the files of a checkpoint that is here; ValueError where it is not the preset's network."""
    from dataclasses import asdict

    from model.checkpoints.store import load_checkpoint

    if source is None or not (root / source).is_dir():
        return [f"{source} is not here as a folder: its files are checked when the stage loads them"] if source else []
    found = load_checkpoint(root / source, device="meta").config
    same = ("hidden_size", "num_layers", "num_heads", "feed_forward_size", "num_experts", "expert_feed_forward_size")
    ours, theirs = asdict(config), asdict(found)
    if wrong := [f"{name} {theirs[name]} instead of {ours[name]}" for name in same if ours[name] != theirs[name]]:
        raise ValueError(f"{source} is not the preset's network: {', '.join(wrong)}")
    return [f"{source}: every tensor has its name and shape"]


def meta_network(config: Any) -> Any:
    """The network without memory."""
    import torch

    from model.network.transformer import Transformer

    with torch.device("meta"):
        return Transformer(config)


def describe_training(
    config: Any, params: dict[str, Any], section: dict[str, Any], gpus: int, wanted: dict
) -> list[str]:
    """Parameters, tokens per optimizer step, and memory per GPU by part, replicated and sharded."""
    from model.checkpoints.derive import first_and_last_layers, layer_subset

    parent = meta_network(config)
    network = parent
    lines = [f"parameters: {_numel(parent):,} ({_active(config, parent):,} active per token)"]
    if "layers" in section:
        network = layer_subset(parent, first_and_last_layers(config.num_layers, section["layers"]))
        fewer = 1 - _numel(network) / _numel(parent)
        lines += [
            f"student: {section['layers']} of {config.num_layers} layers, {_numel(network):,} parameters, {fewer:.1%} fewer"
        ]
    rows, parts = section["batch_rows"], section.get("accumulation_steps", 1)
    if rows % (parts * gpus):
        raise ValueError(
            f"batch_rows {rows} must be a multiple of accumulation_steps {parts} x {gpus} GPUs: change one of them"
        )
    length = params["tokenize"]["row_tokens"]
    lines += [
        f"optimizer step: {rows} rows of {length} = {rows * length:,} tokens ({gpus} GPUs x {parts} slice(s) x "
        f"{rows // (parts * gpus)} rows); {section['steps']} steps = {section['steps'] * rows * length / 1e6:,.0f}M tokens"
    ]
    slice_rows = rows // (parts * gpus)
    doubled = 2 if config.attention == "block_causal" else 1  # [x_t ; x_0]
    precision = section.get("precision", "float32")
    activations, copies = kept_for_backward(network.config, slice_rows, length * doubled, precision)
    logits = (
        slice_rows * length * config.embedding_rows * 4 * 3
    )  # float32, its log-softmax and its gradient; every position
    held = held_bytes(network, parent if "layers" in section else None, section)
    replicated = Memory(*held, copies, 0, activations, logits)
    narrow_tied = (
        2 * network.embedding.weight.numel() if network.config.tie_embeddings and precision == "bfloat16" else 0
    )
    gathered = gathered_bytes(network, precision)
    sharded = Memory(*(-(-part // gpus) for part in held), narrow_tied, gathered, activations, logits)
    lines += ["memory per GPU, GiB:   " + "".join(f"{name:>13}" for name in (*vars(replicated), "total"))]
    for name, memory in (("replicated (DDP)", replicated), (f"sharded over {gpus} (FSDP2)", sharded)):
        fits = (
            "fits"
            if memory.total < wanted["gpu_memory_gib"] * GIB
            else f"does not fit in {wanted['gpu_memory_gib']} GiB"
        )
        values = "".join(f"{value / GIB:13.1f}" for value in (*vars(memory).values(), memory.total))
        lines += [f"{name:<23}{values}  {fits}"]
    return lines


def held_bytes(network: Any, teacher: Any, section: dict[str, Any]) -> tuple[int, int, int, int]:
    """Weights, gradients, optimizer state (all float32) and a frozen teacher, of one process that has all of each."""
    from model.training.optimizer import make_optimizers

    optimizers = make_optimizers(network, section.get("optimizer", "adamw"), 1.0, 0.0)
    averages = [
        (1 if len(optimizers) > 1 and optimizer is optimizers[0] else 2) * parameter.numel()  # Muon has one, AdamW two
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    width = 2 if section.get("precision") == "bfloat16" else 4
    weights = 4 * _numel(network)
    return weights, weights, 4 * sum(averages), width * _numel(teacher) if teacher else 0


def gathered_bytes(network: Any, precision: str) -> int:
    """At most: one unit with its gradient and the buffer that is reduced, and the next unit, which is already on its way."""
    width = 2 if precision == "bfloat16" else 4
    layers = max(_numel(layer) for layer in network.layers) * (2 * width + width + 4)
    embedding, head = _numel(network.embedding) * (4 + 4 + 4), _numel(network.unembedding) * (width + width + 4)
    return max(layers, embedding, head)


def _numel(network: Any) -> int:
    from model.network.transformer import num_parameters

    return num_parameters(network)


def _active(config: Any, network: Any) -> int:
    """Parameters that one token passes: of the experts only those that answer it."""
    experts = sum(
        p.numel()
        for name, p in network.named_parameters()
        if name.endswith(("feed_forward.gate_up", "feed_forward.down"))
    )
    used = experts * config.experts_per_token // config.num_experts if config.num_experts else 0
    return _numel(network) - experts + used


def kept_for_backward(config: Any, rows: int, length: int, precision: str) -> tuple[int, int]:
    """Bytes that the graph of `rows` rows keeps: activations, and narrow copies of weights that autocast makes."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from model.network.transformer import Transformer

    # A grouped product has no form without memory but in bfloat16: a mixture in float32 counts as twice that, an upper bound.
    narrow = precision == "bfloat16" or config.num_experts > 0
    factor = 2 if narrow and precision != "bfloat16" else 1
    kept: dict[int, torch.Tensor] = {}
    with FakeTensorMode():
        network = Transformer(config)
        own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        shapes = {tuple(sorted(parameter.shape)) for parameter in network.parameters() if parameter.dim() > 1}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in own:
                kept[storage] = tensor
            return tensor

        tokens = torch.zeros(rows, length, dtype=torch.long)
        allowed = torch.ones(rows, 1, length, length, dtype=torch.bool)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=narrow),
        ):
            network(tokens, tokens, allowed)
        sizes = [(tuple(sorted(tensor.shape)) in shapes, tensor.untyped_storage().nbytes()) for tensor in kept.values()]
    copies = sum(size for copy, size in sizes if copy)
    return factor * sum(size for copy, size in sizes if not copy), copies if factor == 1 else 0


if __name__ == "__main__":
    sys.exit(main())

"""python -m bench.network [--repeats 7] [--threads 1] [--device cpu] [--kinds mixture dense]: against transformers' own.

Mixture of experts: MixtureOfExperts (routed experts only, one group, as Qwen3 has) against (a) the plain loop over experts, one
module each, that public LLaDA2 code runs, (b) Qwen3MoeSparseMoeBlock as transformers builds it alone (its eager loop) and
(c) the same block with its grouped_mm implementation; all at equal shapes, forward and forward + backward.
Dense: Transformer against LlamaForCausalLM (sdpa) at equal shapes and equal weights' sizes, hidden states and head, forward and
a training step's forward + backward with cross-entropy on every position. float32 and bfloat16.

Both sides of a row run in turn in this process; a row shows both medians and the median of the ratios theirs / ours
(above 1: ours is faster). One thread on a CPU is timed in processor time, which other programs on the machine disturb least;
everything else by the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from model.network.config import NetworkConfig
from model.network.experts import MixtureOfExperts
from model.network.feed_forward import FeedForward
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer


@dataclass(frozen=True)
class MixtureShape:
    """Sizes of one mixture and of its input."""

    name: str
    tokens: int
    hidden: int
    width: int
    experts: int
    kept: int


@dataclass(frozen=True)
class DenseShape:
    """Sizes of one dense network and of its input."""

    name: str
    batch: int
    rows: int
    hidden: int
    layers: int
    heads: int
    shared: int
    width: int
    vocabulary: int


MIXTURES = (
    MixtureShape("training, 16 experts", 2048, 128, 96, 16, 2),
    MixtureShape("training, 64 experts", 1024, 256, 128, 64, 8),
    MixtureShape("decoding, 256 experts, most empty", 32, 256, 128, 256, 2),
)
DENSE = (
    DenseShape("tiny", 16, 96, 128, 4, 4, 4, 320, 512),
    DenseShape("nano, grouped queries", 2, 256, 512, 4, 8, 2, 1408, 6400),
)


class PlainExperts(nn.Module):
    """The public per-expert layout and loop: one module per expert, each applied to the tokens that chose it."""

    def __init__(self, grouped: MixtureOfExperts, config: NetworkConfig) -> None:
        super().__init__()
        self.router = grouped.router
        self.experts = nn.ModuleList(
            FeedForward(config.hidden_size, config.expert_feed_forward_size) for _ in range(config.num_experts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, weights = self.router(x)
        out = torch.zeros_like(x, dtype=torch.float32)
        for index, expert in enumerate(self.experts):
            token, choice = (chosen == index).nonzero(as_tuple=True)
            if token.numel():
                out.index_add_(0, token, expert(x[token]).float() * weights[token, choice, None])
        return out.to(x.dtype)


def mixture_sides(shape: MixtureShape, dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """Ours first, then what it is compared with."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = NetworkConfig(
        vocabulary_size=8, hidden_size=shape.hidden, num_layers=1, num_heads=1, feed_forward_size=8,
        num_experts=shape.experts, experts_per_token=shape.kept, expert_feed_forward_size=shape.width,
    )  # fmt: skip
    ours = MixtureOfExperts(config)
    sides: dict[str, nn.Module] = {"ours": ours, "plain loop": PlainExperts(ours, config)}
    for implementation in ("eager", "grouped_mm"):
        theirs = Qwen3MoeConfig(
            hidden_size=shape.hidden, moe_intermediate_size=shape.width, num_experts=shape.experts,
            num_experts_per_tok=shape.kept, norm_topk_prob=True,
        )  # fmt: skip
        theirs._experts_implementation = implementation
        block = Qwen3MoeSparseMoeBlock(theirs)
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.02)
        sides[f"Qwen3MoE {implementation}"] = _Flat(block)
    return {name: side.to(device, dtype).train() for name, side in sides.items()}


class _Flat(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x[None])[0]


def mixture_rows(shape: MixtureShape, dtype: torch.dtype, device: str) -> Iterator[tuple[str, dict[str, Callable]]]:
    """(what is timed, {side: call})."""
    x = torch.randn(shape.tokens, shape.hidden, device=device, dtype=dtype)
    pull = torch.randn_like(x)
    sides = mixture_sides(shape, dtype, device)

    def forward(side: nn.Module) -> None:
        with torch.no_grad():
            side(x)

    def both(side: nn.Module) -> None:
        side.zero_grad(set_to_none=True)
        side(x.detach().requires_grad_()).backward(pull)

    for what, call in (("forward", forward), ("forward + backward", both)):
        yield what, {name: (lambda side=side, call=call: call(side)) for name, side in sides.items()}


def dense_sides(shape: DenseShape, dtype: torch.dtype, device: str) -> tuple[Transformer, nn.Module]:
    """Our network and transformers' Llama with the same sizes; causal, untied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = Transformer(
        NetworkConfig(
            vocabulary_size=shape.vocabulary, hidden_size=shape.hidden, num_layers=shape.layers, num_heads=shape.heads,
            num_key_value_heads=shape.shared, feed_forward_size=shape.width, query_key_norm=False, tie_embeddings=False,
            norm="rms_cast_first",
        )
    )  # fmt: skip
    ours.initialise(torch.Generator().manual_seed(0))
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.shared, intermediate_size=shape.width,
            max_position_embeddings=1024, attn_implementation="sdpa",
        )
    )  # fmt: skip
    sizes = [sum(parameter.numel() for parameter in side.parameters()) for side in (ours, theirs)]
    assert sizes[0] == sizes[1], sizes
    return ours.to(device, dtype), theirs.to(device, dtype)


def dense_rows(shape: DenseShape, dtype: torch.dtype, device: str) -> Iterator[tuple[str, dict[str, Callable]]]:
    """(what is timed, {side: call}); the pattern is made inside the call, as in training."""
    ours, theirs = dense_sides(shape, dtype, device)
    tokens = torch.randint(0, shape.vocabulary, (shape.batch, shape.rows), device=device)
    positions = torch.arange(shape.rows, device=device).expand_as(tokens)
    documents = torch.zeros_like(tokens)

    def our_logits() -> torch.Tensor:
        return ours.head(ours(tokens, positions, AttentionPattern("causal", documents, positions)))

    def their_logits() -> torch.Tensor:
        return theirs(input_ids=tokens, use_cache=False).logits

    def forward(logits: Callable) -> None:
        with torch.no_grad():
            logits()

    def both(logits: Callable, network: nn.Module) -> None:
        network.zero_grad(set_to_none=True)
        functional.cross_entropy(logits().flatten(0, 1).float(), tokens.flatten()).backward()

    yield "forward", {"ours": lambda: forward(our_logits), "Llama": lambda: forward(their_logits)}
    yield "training step", {"ours": lambda: both(our_logits, ours), "Llama": lambda: both(their_logits, theirs)}


def medians(
    calls: dict[str, Callable], repeats: int, device: str, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every repeat by side; the sides take turns, the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            started = clock()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(clock() - started)
    return seconds


def show(kind: str, shape: str, dtype: torch.dtype, what: str, seconds: dict[str, list[float]]) -> None:
    """One line per comparison."""
    ours = seconds["ours"]
    for name, theirs in seconds.items():
        if name != "ours":
            ratio = statistics.median(other / own for own, other in zip(ours, theirs, strict=True))
            print(
                f"{kind} | {shape} | {str(dtype).removeprefix('torch.')} | {what} | {name} | "
                f"{statistics.median(ours) * 1e3:.1f} ms | {statistics.median(theirs) * 1e3:.1f} ms | {ratio:.2f}",
                flush=True,
            )


def main() -> None:
    """All rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="+", default=["mixture", "dense"], choices=("mixture", "dense"))
    arguments = parser.parse_args()
    alone = arguments.device == "cpu" and arguments.threads == 1
    clock = time.process_time if alone else time.perf_counter
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} thread(s), {arguments.repeats} repeats")
    print("kind | shape | dtype | what | against | ours | theirs | median of ratios theirs / ours")
    for dtype in (torch.float32, torch.bfloat16):
        for kind, shapes, rows in (("mixture", MIXTURES, mixture_rows), ("dense", DENSE, dense_rows)):
            for shape in shapes if kind in arguments.kinds else ():
                for what, calls in rows(shape, dtype, arguments.device):
                    show(kind, shape.name, dtype, what, medians(calls, arguments.repeats, arguments.device, clock))


if __name__ == "__main__":
    main()

"""python -m bench.network [--repeats 7] [--threads 1] [--device cpu] [--kinds mixture dense step]: against
transformers' own.

Mixture of experts: MixtureOfExperts (routed experts only, one group, as Qwen3 has) against (a) the plain loop over experts, one
module each, that public LLaDA2 code runs, (b) Qwen3MoeSparseMoeBlock as transformers builds it alone (its eager loop) and
(c) the same block with its grouped_mm implementation; all at equal shapes, forward and forward + backward.
Dense: Transformer against LlamaForCausalLM (sdpa) of equal weights, hidden states and head, forward and forward + backward with
cross-entropy on every position.
Step: a whole training step of either as its user makes it. Theirs is what transformers' Trainer does by default: loss of
LlamaForCausalLM(labels=...), backward pass, gradients clipped to 1, fused AdamW; ours is what our loop does: rows laid out, the
last layer and the head only where a token is graded, the loss read in pieces, then the same clipping and optimizer. Pretraining
grades every token of full rows, fine-tuning the second half of each row (a prompt before it, labels -100), conversations have
the lengths of real ones (bench/training.py), which Trainer pads to the longest of the batch. bfloat16 is autocast on both sides,
weights stay float32. `products alone` is how much of our pretraining step its matrix products take: theirs / ours divided by it
is what no program that computes the same products could pass.

Both sides of a row run in turn in this process; a row shows both medians and the median of the ratios theirs / ours
(above 1: ours is faster). One thread on a CPU is timed in processor time, which other programs on the machine disturb least;
everything else by the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import torch
from torch import nn
from torch.nn import functional

from bench.llama import copy_weights, llama
from bench.training import SIZES, Size, made_up
from model.network.config import NetworkConfig
from model.network.experts import MixtureOfExperts
from model.network.feed_forward import FeedForward
from model.network.transformer import Transformer
from model.objectives.next_token import NextToken
from model.text.batch import Batch

KINDS = ("mixture", "dense", "step")


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
    """Sizes of one dense network and of its input; `shared` key heads."""

    name: str
    size: Size
    shared: int


MIXTURES = (
    MixtureShape("training, 16 experts", 2048, 128, 96, 16, 2),
    MixtureShape("training, 64 experts", 1024, 256, 128, 64, 8),
    MixtureShape("decoding, 256 experts, most empty", 32, 256, 128, 256, 2),
)
DENSE = (
    DenseShape("tiny", SIZES["tiny"], 4),
    DenseShape("nano, grouped queries", replace(SIZES["nano"], layers=4), 2),
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


class Dense:
    """Our network and transformers' Llama of the same sizes and weights; causal, untied."""

    def __init__(self, shape: DenseShape) -> None:
        self.size = size = shape.size
        config = NetworkConfig(
            vocabulary_size=size.mask, hidden_size=size.hidden, num_layers=size.layers, num_heads=size.heads,
            num_key_value_heads=shape.shared, feed_forward_size=size.feed_forward, query_key_norm=False, tie_embeddings=False,
            norm="rms_cast_first",
        )  # fmt: skip
        ours = Transformer(config)
        ours.initialise(torch.Generator().manual_seed(0))
        theirs = llama(config)
        copy_weights(ours, theirs)
        self.nets = {"ours": ours, "Llama": theirs}

    def to(self, device: str, dtype: torch.dtype) -> "Dense":
        """Both with weights in `dtype`."""
        for net in self.nets.values():
            net.to(device, dtype)
        return self

    def conversations(self, seed: int, device: str) -> Batch:
        """One conversation a row, padded to the longest."""
        batch = made_up(replace(self.size, block=1), seed)
        longest = int((batch.documents >= 0).sum(1).max())
        return Batch(*(values[:, :longest].to(device) for values in batch.tensors()))

    def batch(self, prompt: int, device: str) -> Batch:
        """Rows of one document each whose first `prompt` tokens are not graded."""
        tokens = torch.randint(0, self.size.mask, (self.size.rows, self.size.length), device=device)
        positions = torch.arange(self.size.length, device=device).expand_as(tokens)
        return Batch(tokens, torch.zeros_like(tokens), positions, positions >= prompt)


def dense_rows(shape: DenseShape, dtype: torch.dtype, device: str) -> Iterator[tuple[str, dict[str, Callable]]]:
    """(what is timed, {side: call}) of networks whose weights are in `dtype`."""
    dense = Dense(shape).to(device, dtype)
    batch = dense.batch(0, device)
    view = NextToken().corrupt(batch, torch.Generator())

    def our_logits(net: Transformer) -> torch.Tensor:
        return net.head(net(view.tokens, view.positions, view.pattern)).flatten(0, 1)

    def their_logits(net: nn.Module) -> torch.Tensor:
        return net(input_ids=batch.tokens).logits.flatten(0, 1)

    def forward(logits: Callable, net: nn.Module) -> None:
        with torch.no_grad():
            logits(net)

    def both(logits: Callable, net: nn.Module) -> None:
        net.zero_grad(set_to_none=True)
        functional.cross_entropy(logits(net).float(), batch.tokens.flatten()).backward()

    sides = {"ours": (our_logits, dense.nets["ours"]), "Llama": (their_logits, dense.nets["Llama"])}
    yield "forward", {name: partial(forward, *side) for name, side in sides.items()}
    yield "forward + backward", {name: partial(both, *side) for name, side in sides.items()}


def step_rows(shape: DenseShape, dtype: torch.dtype, device: str) -> Iterator[tuple[str, dict[str, Callable]]]:
    """The same for whole steps: weights in float32, `dtype` is that of autocast."""
    dense = Dense(shape).to(device, torch.float32)
    autocast = partial(torch.autocast, device, dtype, enabled=dtype != torch.float32)
    nets = dense.nets
    optimizers = {name: torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True) for name, net in nets.items()}

    def our_loss(net: Transformer, batch: Batch) -> torch.Tensor:
        method = NextToken()
        view = method.corrupt(batch, torch.Generator())
        total, count = method.score(
            net(view.tokens, view.positions, view.pattern, None, view.graded), net.unembedding, view
        )["next_token"]
        return total / count

    def their_loss(net: nn.Module, batch: Batch) -> torch.Tensor:
        real, labels = batch.documents >= 0, torch.where(batch.graded, batch.tokens, -100)
        return net(input_ids=batch.tokens, attention_mask=real.long(), labels=labels).loss

    def step(name: str, batches: Iterator[Batch]) -> float:
        net, optimizer, batch = nets[name], optimizers[name], next(batches)
        with autocast():
            loss = (their_loss if name == "Llama" else our_loss)(net, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    batches = {
        "pretraining step": [dense.batch(0, device)],
        "fine-tuning step": [dense.batch(shape.size.length // 2, device)],
        "conversations step": [dense.conversations(seed, device) for seed in range(8)],
    }
    for what, some in batches.items():
        alone = {"products alone": Products(shape, dtype, device)} if what == "pretraining step" else {}
        yield what, {name: partial(step, name, cycle(some)) for name in nets} | alone


class Products:
    """The matrix products of one pretraining step and nothing else: forward, and backward to inputs and to weights."""

    def __init__(self, shape: DenseShape, dtype: torch.dtype, device: str) -> None:
        size, wide = shape.size, shape.size.hidden
        shared, inner = shape.shared * (wide // size.heads), size.feed_forward
        layer = [(wide + 2 * shared, wide), (wide, wide), (2 * inner, wide), (wide, inner)]
        tokens, matrices = size.rows * size.length, size.layers * layer + [(size.mask, wide)]
        make = partial(torch.randn, dtype=dtype, device=device)
        self.operands = [(make(tokens, into), make(out, into), make(tokens, out)) for out, into in matrices]

    def __call__(self) -> None:
        for x, weight, gradient in self.operands:
            x @ weight.T, gradient @ weight, gradient.T @ x


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
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    alone = arguments.device == "cpu" and arguments.threads == 1
    clock = time.process_time if alone else time.perf_counter
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} thread(s), {arguments.repeats} repeats")
    print("kind | shape | dtype | what | against | ours | theirs | median of ratios theirs / ours")
    kinds = (
        ("mixture", MIXTURES, mixture_rows),
        ("dense", DENSE, dense_rows),
        ("step", DENSE, step_rows),
    )
    for dtype in (getattr(torch, name) for name in arguments.dtypes):
        for kind, shapes, rows in kinds:
            for shape in shapes if kind in arguments.kinds else ():
                for what, calls in rows(shape, dtype, arguments.device):
                    show(kind, shape.name, dtype, what, medians(calls, arguments.repeats, arguments.device, clock))


if __name__ == "__main__":
    main()

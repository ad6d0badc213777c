"""python -m bench.training [--size nano] [--precision bfloat16]: our training step against the plain way.

The plain way is how public code does the step: transformers' Llama reads `[x_t ; x_0]` (block diffusion) or the row padded to
the longest under a dense mask, tokens are hidden in a Python loop, logits are computed at every position and costed all under a
mask. Same weights, rows, hidden tokens, optimizer (fused AdamW, weights in float32) and precision (bfloat16 is autocast, as
accelerate and transformers' Trainer have it). Our way is what the training loop does. Both sides take turns in one process of
one thread. A line has the median of the ratios of processor time, tokens of the rows (padding not counted) a second of it, the
largest difference of the losses on equal weights, and what a step takes at most beyond weights, gradients and optimizer state
(resident memory of a process of its own in which two steps went before, so that libraries are loaded and code is compiled; the
largest of three steps). Rows are made up: one conversation each, as long as real ones: at tiny those of its generated world (10
to 35 tokens asked, 34 to 56 answered), at nano the 44 % of 256 tokens that 47,000 public ones take (FLAN, GSM8K, P3, OASST in
Chinese) with a vocabulary of 6,400 of their own. `match_stored_teacher` is distillation from the second epoch on with
`teacher_cache`: our teacher has answered before (its 64 likeliest tokens and one class for all others, so the losses differ
more), the plain way asks it again.
"""

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from bench.llama import copy_weights, llama
from model.network.config import NetworkConfig
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer
from model.noise import HidingConfig, draw_hidden
from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.confidence import Confidence
from model.objectives.masked_diffusion import MaskedDiffusion
from model.objectives.match_teacher import MatchStoredTeacher, MatchTeacher, with_tail
from model.objectives.next_token import NextToken
from model.text.batch import Batch
from model.training.compiling import compile_layers
from model.training.teacher_cache import TeacherCache

HIDING = HidingConfig("iid_t", 0.1, 0.9)


@dataclass(frozen=True)
class Size:
    """What is trained: `tiny` is the preset of that name, `nano` has Nano-LLaDA's sizes (8 rows instead of 96)."""

    mask: int
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    rows: int
    length: int
    prompt: tuple[float, float]  # shares of the row that prompts and answers take, evenly between
    answer: tuple[float, float]
    block: int = 16


SIZES = {
    "tiny": Size(768, 128, 4, 4, 320, 16, 96, (0.10, 0.35), (0.35, 0.58)),
    "nano": Size(6400, 512, 8, 8, 1408, 8, 256, (0.05, 0.50), (0.02, 0.35)),
}
WARM_STEPS = 2  # they load libraries, and compile
METHODS = ("next_token", "masked_diffusion", "block_diffusion", "confidence", "match_teacher", "match_stored_teacher")
DISTILLED = tuple(name for name in METHODS if name.startswith("match_"))  # students have half of the layers


def network(size: Size, seed: int, layers: int) -> Transformer:
    config = NetworkConfig(
        vocabulary_size=size.mask + 1, hidden_size=size.hidden, num_layers=layers, num_heads=size.heads,
        feed_forward_size=size.feed_forward, query_key_norm=False, mask_token_id=size.mask, block_tokens=size.block,
        attention="block_causal",
    )  # fmt: skip
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(seed))
    return net


def made_up(size: Size, seed: int) -> Batch:
    """Conversations filled to their last block with graded tokens, one a row."""
    rng = torch.Generator().manual_seed(seed)
    prompt, answer = (
        (size.length * torch.empty(size.rows, 1).uniform_(*shares, generator=rng)).long()
        for shares in (size.prompt, size.answer)
    )
    column = torch.arange(size.length).expand(size.rows, -1)
    real = column < (prompt + answer + size.block - 1) // size.block * size.block
    tokens = torch.randint(0, size.mask, (size.rows, size.length), generator=rng)
    samples = torch.stack((torch.arange(size.rows), torch.zeros(size.rows, dtype=torch.long)), 1)
    return Batch(tokens, real.long() - 1, column * real, real & (column >= prompt), samples)


class Remembered:
    """What a teacher said about the last batch it was asked about, as model/objectives/stored_answers.py reads it from disk."""

    def __init__(self, asked: MatchTeacher) -> None:
        self.asked = asked

    @torch.no_grad()
    def ask(self, batch: Batch, seed: int) -> None:
        self.drawn = self.asked.base.draw(batch, torch.Generator().manual_seed(seed))
        logits = self.asked.logits(self.asked.base.view(batch, *self.drawn))
        ids = logits.topk(min(TeacherCache.top_k, logits.shape[1])).indices
        self.answered = ids, with_tail(logits.log_softmax(-1), ids)

    def find(self, samples: torch.Tensor) -> None:
        """Here there is one batch only."""

    def masks(self, records: None, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.drawn

    def answers(self, records: None, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.answered


class Ours:
    """The step of the training loop."""

    def __init__(self, size: Size, name: str, is_compiled: bool) -> None:
        teacher = network(size, 1, size.layers)
        block = BlockDiffusion(size.mask, size.block, HIDING)
        self.remembered = Remembered(MatchTeacher(block, teacher))
        self.method = {
            "next_token": NextToken(),
            "masked_diffusion": MaskedDiffusion(size.mask, HIDING),
            "block_diffusion": block,
            "confidence": Confidence(block, 2.0, 0.5),
            "match_teacher": MatchTeacher(block, teacher),
            "match_stored_teacher": MatchStoredTeacher(block, self.remembered),
        }[name]
        self.net = network(size, 0, size.layers // 2 if name in DISTILLED else size.layers)
        for one in (self.net, teacher) if is_compiled else ():
            compile_layers(one)

    def prepare(self, batch: Batch, seed: int) -> None:
        """What an earlier epoch has left."""
        if isinstance(self.method, MatchStoredTeacher):
            self.remembered.ask(batch, seed)

    def loss(self, batch: Batch, seed: int) -> torch.Tensor:
        view = self.method.corrupt(batch, torch.Generator().manual_seed(seed))
        hidden = self.net(view.tokens, view.positions, view.pattern, None, view.graded)
        terms = self.method.score(hidden, self.net.unembedding, view)
        return sum(self.method.weights[name] * total / count.clamp_min(1) for name, (total, count) in terms.items())


class Plain:
    """The same loss from full logits over padded rows."""

    def __init__(self, size: Size, name: str, is_compiled: bool) -> None:
        self.size, self.name = size, name
        ours = network(size, 0, size.layers // 2 if name in DISTILLED else size.layers)
        self.net = llama(ours.config)
        copy_weights(ours, self.net)
        if name in DISTILLED:
            ours = network(size, 1, size.layers)
            self.teacher = llama(ours.config).eval().requires_grad_(False)
            copy_weights(ours, self.teacher)

    def prepare(self, batch: Batch, seed: int) -> None:
        """Nothing is left from an earlier epoch."""

    def loss(self, batch: Batch, seed: int) -> torch.Tensor:
        if self.name == "next_token":
            pattern = AttentionPattern("causal", batch.documents, batch.positions)
            logits = self._logits(self.net, batch.tokens, batch.positions, pattern.allowed())[:, :-1]
            graded = batch.graded[:, 1:].float()
            return (_losses(logits, batch.tokens[:, 1:]) * graded).sum() / graded.sum()
        size, name = self.size, self.name
        in_blocks = name != "masked_diffusion"
        segments = torch.arange(size.length).div(size.block, rounding_mode="floor") * in_blocks
        hidden, weights = draw_hidden(
            segments.expand_as(batch.tokens), batch.graded, HIDING, torch.Generator().manual_seed(seed)
        )
        tokens = batch.tokens.clone()
        for row in range(size.rows):
            for column in range(size.length):
                if hidden[row, column]:
                    tokens[row, column] = size.mask
        positions, pattern = batch.positions, AttentionPattern("bidirectional", batch.documents, batch.positions)
        if in_blocks:
            tokens, positions = torch.cat((tokens, batch.tokens), 1), positions.repeat(1, 2)
            half = (torch.arange(2 * size.length) < size.length).expand(size.rows, -1)
            pattern = AttentionPattern("block_diffusion", batch.documents.repeat(1, 2), positions, size.block, half)
        allowed = pattern.allowed()
        logits = self._logits(self.net, tokens, positions, allowed)[:, : size.length]
        losses = _losses(logits, batch.tokens)
        if name in DISTILLED:
            with torch.no_grad():
                taught = self._logits(self.teacher, tokens, positions, allowed)[:, : size.length].log_softmax(-1)
            divergence = (taught.exp() * (taught - logits.log_softmax(-1))).sum(-1)
            return ((0.7 * divergence + 0.3 * losses) * hidden).sum() / hidden.sum()
        loss = (losses * weights * hidden).sum() / batch.graded.sum()
        if name == "confidence":
            right = (logits.argmax(-1) == batch.tokens) & hidden
            entropy = torch.distributions.Categorical(logits=logits / 0.5).entropy()
            loss = loss + 2.0 * (entropy * right).sum() / right.sum().clamp_min(1)
        return loss

    def _logits(self, net, tokens, positions, allowed) -> torch.Tensor:
        return net(input_ids=tokens, position_ids=positions, attention_mask=allowed).logits.float()


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    flat = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


class Side:
    """One way, its optimizer and precision."""

    def __init__(self, way: Ours | Plain, precision: str) -> None:
        self.way, self.narrow = way, precision == "bfloat16"
        self.optimizer = torch.optim.AdamW(way.net.parameters(), lr=1e-3, fused=True)

    def step(self, batch: Batch, seed: int) -> float:
        """One optimizer step; its loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.narrow):
            loss = self.way.loss(batch, seed)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


@dataclass(frozen=True)
class Comparison:
    """Medians over the steps: seconds of plain over ours, tokens a second of either; the largest difference of the losses."""

    ratio: float
    ours: float
    plain: float
    difference: float


def compare(size: Size, name: str, steps: int, precision: str, is_compiled: bool) -> Comparison:
    ours, plain = Ours(size, name, is_compiled), Plain(size, name, is_compiled)
    sides = [Side(ours, precision), Side(plain, precision)]
    seconds, rates, differences = [], [], []
    for step in range(WARM_STEPS + steps):
        batch, spent, losses = made_up(size, step), [], []
        copy_weights(ours.net, plain.net)
        ours.prepare(batch, step)
        for side in sides:
            began = time.thread_time()
            losses.append(side.step(batch, step))
            spent.append(time.thread_time() - began)
        differences.append(abs(losses[0] - losses[1]))
        if step >= WARM_STEPS:
            seconds.append(spent)
            rates.append([int((batch.documents >= 0).sum()) / took for took in spent])
    ratio = statistics.median(theirs / own for own, theirs in seconds)
    return Comparison(ratio, *(statistics.median(rate) for rate in zip(*rates, strict=True)), max(differences))


def peak_bytes(options: argparse.Namespace, name: str, way: str) -> int:
    """Most memory of three steps beyond what stands when the first begins, gradients left out, in a new process."""
    command = [sys.executable, "-m", "bench.training", "--size", options.size, "--methods", name, "--peak", way]
    command += ["--precision", options.precision, *["--compile"] * options.compile]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(size: Size, way: Ours | Plain, precision: str) -> int:
    """Prints nothing: for the process that `peak_bytes` starts."""
    side = Side(way, precision)
    for step in range(WARM_STEPS):
        run(side, size, step)
    ctypes.CDLL(None).malloc_trim(0)  # what these steps have freed is given back
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
    before = _kilobytes(status, "VmRSS")
    for step in range(WARM_STEPS, WARM_STEPS + 3):
        run(side, size, step)
    gradients = 4 * sum(parameter.numel() for parameter in way.net.parameters())
    return 1024 * (_kilobytes(status, "VmHWM") - before) - gradients


def run(side: Side, size: Size, step: int) -> None:
    """One step on rows of its own."""
    batch = made_up(size, step)
    side.way.prepare(batch, step)
    side.step(batch, step)


def _kilobytes(status: Path, name: str) -> int:
    return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="our layers through torch.compile (`compile: true`)")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument(
        "--peak", choices=("ours", "plain"), help="only print the bytes of one side; for the bench itself"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = SIZES[options.size]
    if options.peak:
        way = Ours if options.peak == "ours" else Plain
        print(own_peak(size, way(size, options.methods[0], options.compile), options.precision))
        return
    print(f"{options.size}, {options.precision}{', ours compiled' if options.compile else ''}")
    print("method | plain / ours | tokens/s ours | plain | losses differ by | peak MB ours | plain")
    for name in options.methods:
        found = compare(size, name, options.steps, options.precision, options.compile)
        peaks = [peak_bytes(options, name, way) / 2**20 for way in ("ours", "plain")]
        print(
            f"{name} | {found.ratio:.2f} | {found.ours:.0f} | {found.plain:.0f} | {found.difference:.1e} | {peaks[0]:.0f} | "
            f"{peaks[1]:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""python -m bench.training [--steps 5] [--size nano]: our training step against the plain way of public code.

The plain way reads `[x_t ; x_0]` (block diffusion) or the row padded to the longest, hides tokens in a Python loop, builds
the dense mask, computes logits at every position and costs them all under a mask. Same network, optimizer, rows and hidden
tokens; both sides take turns. Prints the median ratio of step times (processor time of this thread), the largest
difference of the losses on equal weights, and what a step takes at most beyond weights and optimizer state (resident memory
of a process of its own; the largest of three steps). Rows are made up: one conversation each, a prompt and an answer of 1/6 to
1/2 of the row. Only float32.
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from model.network.config import NetworkConfig
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer
from model.noise import HidingConfig, draw_hidden
from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.confidence import Confidence
from model.objectives.masked_diffusion import MaskedDiffusion
from model.objectives.match_teacher import MatchTeacher
from model.objectives.next_token import NextToken
from model.text.batch import Batch

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
    block: int = 16


SIZES = {"tiny": Size(768, 128, 4, 4, 320, 16, 96), "nano": Size(6400, 512, 8, 8, 1408, 8, 256)}
METHODS = ("next_token", "masked_diffusion", "block_diffusion", "confidence", "match_teacher")


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
    least, most = size.length // 6, size.length // 2 + 1
    prompt, answer = (torch.randint(least, most, (size.rows, 1), generator=rng) for _ in range(2))
    column = torch.arange(size.length).expand(size.rows, -1)
    real = column < (prompt + answer + size.block - 1) // size.block * size.block
    tokens = torch.randint(0, size.mask, (size.rows, size.length), generator=rng)
    return Batch(tokens, real.long() - 1, column * real, real & (column >= prompt))


def objective(size: Size, name: str, teacher: Transformer):
    """Ours."""
    block = BlockDiffusion(size.mask, size.block, HIDING)
    return {
        "next_token": NextToken(),
        "masked_diffusion": MaskedDiffusion(size.mask, HIDING),
        "block_diffusion": block,
        "confidence": Confidence(block, 2.0, 0.5),
        "match_teacher": MatchTeacher(block, teacher),
    }[name]


def our_loss(net: Transformer, method, batch: Batch, seed: int) -> torch.Tensor:
    view = method.corrupt(batch, torch.Generator().manual_seed(seed))
    terms = method.score(net(view.tokens, view.positions, view.pattern, None, view.graded), net.unembedding, view)
    return sum(method.weights[name] * total / count.clamp_min(1) for name, (total, count) in terms.items())


def plain_loss(size: Size, net: Transformer, name: str, batch: Batch, seed: int, teacher: Transformer) -> torch.Tensor:
    """The same loss from full logits over padded rows."""
    if name == "next_token":
        pattern = AttentionPattern("causal", batch.documents, batch.positions)
        logits = net.head(net(batch.tokens, batch.positions, pattern))[:, :-1]
        graded = batch.graded[:, 1:].float()
        losses = functional.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
        return (losses.view(graded.shape) * graded).sum() / graded.sum()
    segments = torch.zeros_like(batch.tokens)
    if name != "masked_diffusion":
        segments += torch.arange(size.length).div(size.block, rounding_mode="floor")
    hidden, weights = draw_hidden(segments, batch.graded, HIDING, torch.Generator().manual_seed(seed))
    noisy = batch.tokens.clone()
    for row in range(size.rows):
        for column in range(size.length):
            if hidden[row, column]:
                noisy[row, column] = size.mask
    tokens, positions, pattern = (
        noisy,
        batch.positions,
        AttentionPattern("bidirectional", batch.documents, batch.positions),
    )
    if name != "masked_diffusion":
        tokens, positions = torch.cat((noisy, batch.tokens), 1), batch.positions.repeat(1, 2)
        half = (torch.arange(2 * size.length) < size.length).expand(size.rows, -1)
        pattern = AttentionPattern("block_diffusion", batch.documents.repeat(1, 2), positions, size.block, half)
    logits = net.head(net(tokens, positions, pattern))[:, : size.length]
    losses = functional.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten(), reduction="none").view(hidden.shape)
    if name == "match_teacher":
        with torch.no_grad():
            taught = functional.log_softmax(teacher.head(teacher(tokens, positions, pattern))[:, : size.length], -1)
        divergence = (taught.exp() * (taught - functional.log_softmax(logits, -1))).sum(-1)
        return ((0.7 * divergence + 0.3 * losses) * hidden).sum() / hidden.sum()
    loss = (losses * weights * hidden).sum() / batch.graded.sum()
    if name == "confidence":
        right = (logits.argmax(-1) == batch.tokens) & hidden
        entropy = torch.distributions.Categorical(logits=logits / 0.5).entropy()
        loss = loss + 2.0 * (entropy * right).sum() / right.sum().clamp_min(1)
    return loss


class Side:
    """One side's network, optimizer and loss."""

    def __init__(self, size: Size, name: str, ours: bool) -> None:
        self.size, self.name, self.teacher = size, name, network(size, 1, size.layers)
        self.net = network(size, 0, size.layers // 2 if name == "match_teacher" else size.layers)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, fused=True)
        self.method = objective(size, name, self.teacher) if ours else None

    def step(self, batch: Batch, seed: int) -> float:
        """One optimizer step; its loss."""
        if self.method is not None:
            loss = our_loss(self.net, self.method, batch, seed)
        else:
            loss = plain_loss(self.size, self.net, self.name, batch, seed, self.teacher)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def compare(size: Size, name: str, steps: int) -> tuple[float, float, float]:
    """(median ratio plain / ours, our median seconds, largest difference of the losses on equal weights)."""
    sides = [Side(size, name, ours) for ours in (True, False)]
    ratios, seconds, differences = [], [], []
    for step in range(steps + 1):
        batch, spent, losses = made_up(size, step), [], []
        sides[1].net.load_state_dict(sides[0].net.state_dict())
        for side in sides:
            began = time.thread_time()
            losses.append(side.step(batch, step))
            spent.append(time.thread_time() - began)
        differences.append(abs(losses[0] - losses[1]))
        if step:
            ratios.append(spent[1] / spent[0])
            seconds.append(spent[0])
    return statistics.median(ratios), statistics.median(seconds), max(differences)


def peak_bytes(size: str, name: str, ours: bool) -> int:
    """Most memory of three steps beyond what stands when the first begins, gradients and moments left out, in a new process."""
    command = [
        sys.executable,
        "-m",
        "bench.training",
        "--size",
        size,
        "--methods",
        name,
        "--peak",
        "ours" if ours else "plain",
    ]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(size: Size, name: str, ours: bool) -> int:
    side = Side(size, name, ours)
    status = Path("/proc/self/status")
    before = _kilobytes(status, "VmRSS")
    for step in range(3):
        side.step(made_up(size, step), step)
    state = 3 * 4 * sum(parameter.numel() for parameter in side.net.parameters())  # gradients and AdamW's two moments
    return 1024 * (_kilobytes(status, "VmHWM") - before) - state


def _kilobytes(status: Path, name: str) -> int:
    return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument(
        "--peak", choices=("ours", "plain"), help="only print the bytes of one side; for the bench itself"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = SIZES[options.size]
    if options.peak:
        print(own_peak(size, options.methods[0], options.peak == "ours"))
        return
    for name in options.methods:
        ratio, seconds, difference = compare(size, name, options.steps)
        ours, plain = (peak_bytes(options.size, name, which) / 2**20 for which in (True, False))
        line = f"{name:17} {ratio:5.2f} times faster than the plain way, {1e3 * seconds:6.0f} ms a step"
        print(
            f"{line}, losses differ by at most {difference:.1e}, peak {ours:.0f} MB against {plain:.0f} MB", flush=True
        )


if __name__ == "__main__":
    main()

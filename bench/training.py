"""python -m bench.training [--steps 5]: our training step against the plain way of public code, at tiny's size.

The plain way reads `[x_t ; x_0]` (block diffusion) or the row padded to the longest, hides tokens in a Python loop, builds
the dense mask, computes logits at every position and costs them all under a mask. Same network, optimizer, rows and hidden
tokens; both sides take turns. Prints the median ratio of step times (processor time of this thread) and the largest
difference of the losses on equal weights. Rows are made up: one conversation each, a prompt of 16 to 48 and an answer of 16
to 48 tokens. Only float32.
"""

import argparse
import copy
import statistics
import time

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

MASK, BLOCK, ROWS, LENGTH = 512, 16, 16, 96
HIDING = HidingConfig("iid_t", 0.1, 0.9)
METHODS = ("next_token", "masked_diffusion", "block_diffusion", "confidence", "match_teacher")


def network(seed: int, layers: int = 4) -> Transformer:
    config = NetworkConfig(
        vocabulary_size=MASK + 1, hidden_size=128, num_layers=layers, num_heads=4, feed_forward_size=320,
        query_key_norm=False, mask_token_id=MASK, block_tokens=BLOCK, attention="block_causal",
    )  # fmt: skip
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(seed))
    return net


def made_up(seed: int) -> Batch:
    """Conversations filled to their last block with graded tokens, one a row."""
    rng = torch.Generator().manual_seed(seed)
    prompt, answer = (torch.randint(16, 49, (ROWS, 1), generator=rng) for _ in range(2))
    column = torch.arange(LENGTH).expand(ROWS, -1)
    real = column < (prompt + answer + BLOCK - 1) // BLOCK * BLOCK
    tokens = torch.randint(0, MASK, (ROWS, LENGTH), generator=rng)
    return Batch(tokens, real.long() - 1, column * real, real & (column >= prompt))


def objective(name: str, teacher: Transformer):
    """Ours."""
    block = BlockDiffusion(MASK, BLOCK, HIDING)
    return {
        "next_token": NextToken(),
        "masked_diffusion": MaskedDiffusion(MASK, HIDING),
        "block_diffusion": block,
        "confidence": Confidence(block, 2.0, 0.5),
        "match_teacher": MatchTeacher(block, teacher),
    }[name]


def our_loss(net: Transformer, method, batch: Batch, seed: int) -> torch.Tensor:
    view = method.corrupt(batch, torch.Generator().manual_seed(seed))
    terms = method.score(net(view.tokens, view.positions, view.pattern, None, view.graded), net.head, view)
    return sum(method.weights[name] * total / count.clamp_min(1) for name, (total, count) in terms.items())


def plain_loss(net: Transformer, name: str, batch: Batch, seed: int, teacher: Transformer) -> torch.Tensor:
    """The same loss from full logits over padded rows."""
    if name == "next_token":
        pattern = AttentionPattern("causal", batch.documents, batch.positions)
        logits = net.head(net(batch.tokens, batch.positions, pattern))[:, :-1]
        graded = batch.graded[:, 1:].float()
        losses = functional.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
        return (losses.view(graded.shape) * graded).sum() / graded.sum()
    segments = torch.zeros_like(batch.tokens)
    if name != "masked_diffusion":
        segments += torch.arange(LENGTH).div(BLOCK, rounding_mode="floor")
    hidden, weights = draw_hidden(segments, batch.graded, HIDING, torch.Generator().manual_seed(seed))
    noisy = batch.tokens.clone()
    for row in range(ROWS):
        for column in range(LENGTH):
            if hidden[row, column]:
                noisy[row, column] = MASK
    tokens, positions, pattern = (
        noisy,
        batch.positions,
        AttentionPattern("bidirectional", batch.documents, batch.positions),
    )
    if name != "masked_diffusion":
        tokens, positions = torch.cat((noisy, batch.tokens), 1), batch.positions.repeat(1, 2)
        half = (torch.arange(2 * LENGTH) < LENGTH).expand(ROWS, -1)
        pattern = AttentionPattern("block_diffusion", batch.documents.repeat(1, 2), positions, BLOCK, half)
    logits = net.head(net(tokens, positions, pattern))[:, :LENGTH]
    losses = functional.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten(), reduction="none").view(hidden.shape)
    if name == "match_teacher":
        with torch.no_grad():
            taught = functional.log_softmax(teacher.head(teacher(tokens, positions, pattern))[:, :LENGTH], -1)
        divergence = (taught.exp() * (taught - functional.log_softmax(logits, -1))).sum(-1)
        return ((0.7 * divergence + 0.3 * losses) * hidden).sum() / hidden.sum()
    loss = (losses * weights * hidden).sum() / batch.graded.sum()
    if name == "confidence":
        right = (logits.argmax(-1) == batch.tokens) & hidden
        entropy = torch.distributions.Categorical(logits=logits / 0.5).entropy()
        loss = loss + 2.0 * (entropy * right).sum() / right.sum().clamp_min(1)
    return loss


def compare(name: str, steps: int) -> tuple[float, float, float]:
    """(median ratio plain / ours, our median seconds, largest difference of the losses on equal weights)."""
    teacher, ours = network(1), network(0, 2 if name == "match_teacher" else 4)
    plain, method = copy.deepcopy(ours), objective(name, teacher)
    optimizers = [torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True) for net in (ours, plain)]
    ratios, seconds, differences = [], [], []
    for step in range(steps + 2):
        batch, spent, losses = made_up(step), [], []
        plain.load_state_dict(ours.state_dict())
        for net, optimizer in zip((ours, plain), optimizers, strict=True):
            began = time.thread_time()
            loss = our_loss(net, method, batch, step) if net is ours else plain_loss(net, name, batch, step, teacher)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            spent.append(time.thread_time() - began)
            losses.append(loss.item())
        differences.append(abs(losses[0] - losses[1]))
        if step >= 2:
            ratios.append(spent[1] / spent[0])
            seconds.append(spent[0])
    return statistics.median(ratios), statistics.median(seconds), max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.methods:
        ratio, seconds, difference = compare(name, options.steps)
        line = f"{name:17} {ratio:5.2f} times faster than the plain way, {1e3 * seconds:4.0f} ms a step"
        print(f"{line}, losses differ by at most {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()

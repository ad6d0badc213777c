"""Log-likelihoods of continuations: exact for a causal network, a Monte-Carlo bound for networks that fill in masks.

The bound is the `exact_count` one (methods.md section 1): of the n tokens of a segment k ~ U{1..n} are hidden and their
log-probabilities count n / k. Its expectation is a lower bound of the log-likelihood, exact for segments of one token. A segment
is the whole continuation (bidirectional network) or a block of the grid (block-causal network, previous blocks clean).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch

from model.network.masks import AttentionPattern

Pair = tuple[list[int], list[int]]  # context ids, continuation ids
Likelihood = Callable[[Sequence[Pair]], list[tuple[float, bool]]]


@dataclass(frozen=True)
class _Row:
    """One row for the network: `graded` indexes the rows whose log-probability of `labels` counts `weights` times."""

    pair: int
    tokens: list[int]
    positions: list[int]
    noisy: list[bool]
    graded: list[int]
    labels: list[int]
    weights: list[float]


@torch.inference_mode()
def _evaluate(network, rows: Sequence[_Row], kind: str) -> Iterator[tuple[_Row, float, bool]]:
    """For every row: the weighted sum of log-probabilities, and whether every label is the most probable token."""
    length = max(len(row.tokens) for row in rows)
    device = next(network.parameters()).device

    def padded(values: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([line + [fill] * (length - len(line)) for line in values], device=device)

    tokens = padded([row.tokens for row in rows], 0)
    positions = padded([row.positions for row in rows], 0)
    documents = padded([[0] * len(row.tokens) for row in rows], -1)
    noisy = padded([row.noisy for row in rows], False).bool()
    pattern = AttentionPattern(kind, documents, positions, network.config.block_tokens, noisy)
    hidden = network(tokens, positions, pattern)
    owner = torch.tensor([number for number, row in enumerate(rows) for _ in row.graded], device=device)
    graded = torch.tensor([index for row in rows for index in row.graded], device=device)
    labels = torch.tensor([label for row in rows for label in row.labels], device=device)
    weights = torch.tensor([weight for row in rows for weight in row.weights], dtype=torch.float64, device=device)
    logits = network.head(hidden[owner, graded]).double()
    if network.config.mask_token_id is not None:
        logits[:, network.config.mask_token_id] = -torch.inf  # the mask is never a legal proposal
    chosen = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0] * weights
    totals = torch.zeros(len(rows), dtype=torch.float64, device=device).index_add_(0, owner, chosen)
    misses = torch.zeros(len(rows), device=device).index_add_(0, owner, (logits.argmax(-1) != labels).float())
    yield from zip(rows, totals.tolist(), (misses == 0).tolist(), strict=True)


def _batches(rows: list[_Row], batch_rows: int) -> Iterator[list[_Row]]:
    ordered = sorted(rows, key=lambda row: len(row.tokens))
    for start in range(0, len(ordered), batch_rows):
        yield ordered[start : start + batch_rows]


def exact_likelihood(network, batch_rows: int = 32) -> Likelihood:
    """Likelihood of a causal network that predicts token i + 1 at row i."""

    def likelihood(pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        rows = []
        for number, (context, continuation) in enumerate(pairs):
            tokens = [*context, *continuation][:-1]
            graded = list(range(len(context) - 1, len(tokens)))
            if not continuation:
                continue
            rows.append(
                _Row(
                    number,
                    tokens,
                    list(range(len(tokens))),
                    [False] * len(tokens),
                    graded,
                    continuation,
                    [1.0] * len(graded),
                )
            )
        answers = {number: (0.0, True) for number, (_, continuation) in enumerate(pairs) if not continuation}
        for batch in _batches(rows, batch_rows):
            answers.update({row.pair: (total, greedy) for row, total, greedy in _evaluate(network, batch, "causal")})
        return [answers[number] for number in range(len(pairs))]

    return likelihood


def _hidden(draw: int, draws: int, segment: int, length: int, seed: int) -> tuple[list[int], float]:
    """Which of a segment's `length` tokens draw number `draw` hides, and the weight n / k. Draws are spread evenly over k.

    Depends on the seed, the segment's number and its length only: the choices of one question share their draws, and nothing
    depends on the batch.
    """
    shared = numpy.random.default_rng([seed, segment])
    stratum, offset = shared.permutation(draws)[draw], shared.random(draws)[draw]
    count = int((stratum + offset) / draws * length) + 1
    chosen = numpy.random.default_rng([seed, segment, draw + 1]).permutation(length)[:count]
    return sorted(int(index) for index in chosen), length / count


def _masked_row(network, number: int, pair: Pair, draw: int | None, draws: int, seed: int) -> _Row:
    """Row for one draw; draw None hides the whole continuation (its argmax answers 'is it greedy')."""
    (context, continuation), mask = pair, network.config.mask_token_id
    blocks = network.config.attention == "block_causal"
    block = network.config.block_tokens if blocks else len(context) + len(continuation)
    text, start = [*context, *continuation], len(context)
    first, last = start // block, (len(text) - 1) // block
    noisy = text[first * block :]
    if blocks:
        noisy += [mask] * ((last + 1) * block - len(text))  # what follows in the last block is unknown, as in decoding
    clean = text[: last * block]
    graded, weights = [], []
    for segment in range(first, last + 1):
        begin, end = max(start, segment * block), min(len(text), (segment + 1) * block)
        hidden, weight = (
            (list(range(end - begin)), 1.0)
            if draw is None
            else _hidden(draw, draws, segment - first, end - begin, seed)
        )
        graded += [begin + index - first * block for index in hidden]
        weights += [weight] * len(hidden)
    labels = [noisy[index] for index in graded]
    for index in graded:
        noisy[index] = mask
    positions = [*range(first * block, first * block + len(noisy)), *range(len(clean))]
    flags = [True] * len(noisy) + [False] * len(clean)
    return _Row(number, noisy + clean, positions, flags, graded, labels, weights)


def bounded_likelihood(network, draws: int = 16, seed: int = 0, batch_rows: int = 32) -> Likelihood:
    """Monte-Carlo lower bound over `draws` hidings for a bidirectional or block-causal network with a mask token.

    `is_greedy` says whether every token is the most probable one when the whole continuation is hidden.
    """
    if network.config.mask_token_id is None:
        raise ValueError("the network has no mask token: run convert_to_diffusion first, or use exact_likelihood")
    kind = "block_diffusion" if network.config.attention == "block_causal" else "bidirectional"

    def likelihood(pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        totals, greedy = [0.0] * len(pairs), [True] * len(pairs)
        jobs = [(number, draw) for number in range(len(pairs)) for draw in (None, *range(draws))]
        jobs = [job for job in jobs if pairs[job[0]][1]]
        rows = [_masked_row(network, number, pairs[number], draw, draws, seed) for number, draw in jobs]
        whole = {id(row) for row, (_, draw) in zip(rows, jobs, strict=True) if draw is None}
        for batch in _batches(rows, batch_rows):
            for row, total, is_greedy in _evaluate(network, batch, kind):
                if id(row) in whole:
                    greedy[row.pair] = is_greedy
                else:
                    totals[row.pair] += total / draws
        return list(zip(totals, greedy, strict=True))

    return likelihood


def make_likelihood(network, draws: int = 16, seed: int = 0, batch_rows: int = 32) -> Likelihood:
    """The likelihood that suits how the network reads (config.attention)."""
    if network.config.attention == "causal":
        return exact_likelihood(network, batch_rows)
    return bounded_likelihood(network, draws, seed, batch_rows)

"""Losses against public code (the fixtures' stored masks and values) and against the closed form of iid_t's bias."""

import itertools
from dataclasses import replace
from math import comb
from pathlib import Path

import pytest
import torch
from objective_example import MASK, batch, loss_of, network
from safetensors.torch import load_file

from model.checkpoints.store import load_checkpoint
from model.hiding import HidingConfig
from model.network.masks import AttentionPattern
from model.noise import weighed
from model.objectives.masked_diffusion import MaskedDiffusion
from model.objectives.objective import View

FIXTURES = Path(__file__).parents[2] / "fixtures"


def seen(tokens, hidden, targets, weights, maskable) -> View:
    """The view of whole rows without padding, hidden where the fixture hid."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    pattern = AttentionPattern("bidirectional", torch.zeros_like(tokens), positions)
    return View(tokens, positions, pattern, hidden, targets, weights, torch.tensor(float(maskable)))


@torch.no_grad()
def bound(net, view: View) -> float:
    states = net(view.tokens, view.positions, view.pattern, None, view.graded)
    total, count = MaskedDiffusion(MASK).score(states, net.head, view)["diffusion"]
    return float(total / count)


def test_nano_lladas_three_losses_are_ours_under_other_names():
    net, stored = (
        load_checkpoint(FIXTURES / "minimind-tiny").network,
        load_file(FIXTURES / "minimind-tiny/expected.safetensors"),
    )
    found = {name.removeprefix("diffusion."): value for name, value in stored.items() if name.startswith("diffusion.")}
    hidden, targets = found["mask"], found["targets"][found["mask"]]
    per_token = {name: found[name][:, None].expand_as(hidden)[hidden] for name in ("t", "time_weights")}
    view = seen(found["input_ids"], hidden, targets, 1 / per_token["t"], found["seq_lengths"].sum())
    assert bound(net, view) == pytest.approx(float(found["loss_eq3"]), rel=1e-5)
    weights, count = weighed(view.weights, view.maskable, HidingConfig(weighting="plain_mean"))
    plain = replace(view, weights=weights, maskable=count)
    assert bound(net, plain) == pytest.approx(float(found["loss_masked_mean"]), rel=1e-5)
    timed = replace(view, weights=per_token["time_weights"], maskable=per_token["time_weights"].sum())
    assert bound(net, timed) == pytest.approx(float(found["loss_time_weighted"]), rel=1e-5)


@pytest.mark.parametrize(("case", "guidance"), [("loglik0", 0.0), ("loglik1", 0.5)])
def test_lladas_monte_carlo_likelihood_of_its_stored_masks(case, guidance):
    net, stored = (
        load_checkpoint(FIXTURES / "llada-tiny").network,
        load_file(FIXTURES / "llada-tiny/expected.safetensors"),
    )
    mask, prompt = net.config.mask_token_id, stored[f"{case}.prompt"]
    noisy, share = stored[f"{case}.perturbed"].flatten(0, 1), stored[f"{case}.p_mask"].flatten(0, 1)
    clean = torch.cat((prompt, stored[f"{case}.answer"])).expand_as(noisy)
    hidden = noisy == mask
    view = seen(noisy, hidden, clean[hidden], 1 / share[hidden], len(noisy))
    with torch.no_grad():
        logits = net.head(net(view.tokens, view.positions, view.pattern, None, hidden))
        if guidance:
            blind = noisy.clone()
            blind[:, : len(prompt)] = mask
            without = net.head(net(blind, view.positions, view.pattern, None, hidden))
            logits = without + (guidance + 1) * (logits - without)
        total, count = MaskedDiffusion(mask).score(logits, lambda read: read, view)["diffusion"]
    assert -float(total / count) == pytest.approx(float(stored[f"{case}.value"]), rel=1e-5)


def subset_losses(net, data) -> list[float]:
    """M_k for k = 1..n: the mean cross-entropy of a hidden token over all k-subsets of a row."""
    length, means = data.tokens.shape[1], []
    pattern = AttentionPattern("bidirectional", data.documents, data.positions)
    for count in range(1, length + 1):
        losses = []
        for chosen in itertools.combinations(range(length), count):
            tokens = data.tokens.clone()
            tokens[0, list(chosen)] = MASK
            with torch.no_grad():
                logits = net.head(net(tokens, data.positions, pattern))[0, list(chosen)]
            losses.append(float(torch.nn.functional.cross_entropy(logits, data.tokens[0, list(chosen)])))
        means.append(sum(losses) / len(losses))
    return means


def test_the_bias_of_iid_t_is_what_its_formula_says():
    """E = mean over t in the bandwidth of sum_k C(n,k) t^k (1-t)^(n-k) k M_k / t + (1-t)^n M_1 / t; without bias: sum_k M_k."""
    low, high, length = 0.2, 0.8, 4
    net, data = network(), batch(rows=1, length=length, prompt=0)
    means = subset_losses(net, data)
    t = low + (high - low) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    inside = sum(comb(length, k) * t**k * (1 - t) ** (length - k) * k * mean for k, mean in enumerate(means, 1))
    expected = float(((inside + (1 - t) ** length * means[0]) / t).mean()) / length
    exact = sum(means) / length
    many = type(data)(*(value.expand(2000, -1) for value in data.tensors()))
    objective = MaskedDiffusion(MASK, HidingConfig("iid_t", low, high))
    with torch.no_grad():
        estimates = torch.stack([loss_of(net, objective, many, seed) for seed in range(8)])
    error = float(estimates.std()) / 8**0.5
    assert abs(float(estimates.mean()) - expected) < 5 * error
    assert abs(expected - exact) > 10 * error, "the bias is too small to be seen here"

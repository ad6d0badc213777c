"""Decoding: batches, caches and speculation may change the cost of an answer and nothing else."""

import random

import pytest
import torch

from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.samplers import compatibility
from model.samplers.block_loop import BlockDecoder
from model.samplers.decode import make_decoder, make_policy
from model.samplers.guesses import DraftGuesser
from model.samplers.policies import BlockView, EntropyThreshold, Factor, FixedSteps, Hybrid, Threshold, UniformTime
from model.samplers.token_editing import TokenEditing

MASK, EOS, BLOCK = 30, 1, 8
POLICIES = {
    "three_steps": FixedSteps(3),
    "threshold": Threshold(0.2),
    "hybrid": Hybrid(0.2, 4),
}


def network(attention: str = "block_causal", seed: int = 0, block: int = BLOCK) -> Transformer:
    config = NetworkConfig(
        vocabulary_size=31,
        hidden_size=24,
        num_layers=2,
        num_heads=2,
        feed_forward_size=32,
        attention=attention,
        block_tokens=block,
        maximum_positions=128,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(9)
    return net.double().eval()


def noisy_copy(net: Transformer, amount: float) -> Transformer:
    copy, rng = network(), torch.Generator().manual_seed(7)
    copy.load_state_dict(net.state_dict())
    with torch.no_grad():
        for parameter in copy.parameters():
            noise = torch.empty_like(parameter).normal_(0.0, 1.0, generator=rng)
            parameter.add_(noise * parameter.std() * amount)
    return copy


def prompts(count: int = 4, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(2, MASK) for _ in range(rng.randrange(1, 21))] for _ in range(count)]


def uncached_reference(
    net: Transformer, policy, prompt: list[int], new: int, early: bool = True
) -> tuple[list[int], list[int]]:
    """The same decoder written plainly: one row, the whole prefix recomputed at every step, no cache, no batch."""
    from model.network.masks import AttentionPattern

    total = -(-(len(prompt) + new) // BLOCK) * BLOCK
    canvas = prompt + [MASK] * (total - len(prompt))
    when, forwards = [0] * total, 0
    for start in range(len(prompt) // BLOCK * BLOCK, total, BLOCK):
        step, hidden_at_start = 0, canvas[start : start + BLOCK].count(MASK)
        while MASK in canvas[start : start + BLOCK]:
            end = start + BLOCK if net.config.attention == "block_causal" else total
            tokens, positions = torch.tensor([canvas[:end]]), torch.arange(end)[None]
            pattern = AttentionPattern(net.config.attention, torch.zeros_like(tokens), positions, BLOCK)
            logits = net.head(net(tokens, positions, pattern))[0, start : start + BLOCK].double()
            logits[:, MASK] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            doubt = torch.where(tokens[0, start : start + BLOCK] == MASK, 1 / confidence - 1, torch.inf)[None]
            forwards += 1
            view = BlockView(doubt.isfinite(), doubt, torch.tensor([step]), torch.tensor([hidden_at_start]))
            reveal = policy.choose(view)[0]
            for column in reveal.nonzero()[:, 0].tolist():
                canvas[start + column], when[start + column] = int(token[column]), forwards
            step += 1
            answer = canvas[len(prompt) : start + BLOCK]
            if early and EOS in answer and MASK not in answer[: answer.index(EOS)]:
                cut = answer.index(EOS) + 1
                return answer[:cut][:new], when[len(prompt) :][:cut][:new]
        answer = canvas[len(prompt) : start + BLOCK]
        if EOS in answer:
            break
    answer, when = answer[:new], when[len(prompt) :]
    cut = answer.index(EOS) + 1 if EOS in answer else len(answer)
    return answer[:cut], when[:cut]


@pytest.mark.parametrize("attention", ["block_causal", "bidirectional"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("early", [True, False], ids=["early", "late"])
def test_a_batched_cached_decode_equals_the_plain_one_row_by_row(attention, policy, early):
    net, asked = network(attention), prompts(3)
    found = BlockDecoder(net, policy, batch_rows=2, eos_early_stop=early)(asked, 9)
    for prompt, decoded in zip(asked, found, strict=True):
        assert (decoded.tokens, decoded.revealed_at) == uncached_reference(net, policy, prompt, 9, early)


def test_no_mask_token_is_left_and_the_limit_holds():
    for decoded in BlockDecoder(network(), FixedSteps(2))(prompts(), 13):
        assert MASK not in decoded.tokens and 1 <= len(decoded.tokens) <= 13
        assert len(decoded.tokens) == len(decoded.revealed_at) == len(decoded.confidence)
        assert EOS not in decoded.tokens[:-1]


def test_bad_input_is_refused_with_the_way_out():
    net = network()
    decode = BlockDecoder(net, FixedSteps(8))
    assert decode([], 8) == []
    for prompt, new, message in (
        ([], 8, "empty"),
        ([2, MASK], 8, "mask token"),
        ([2] * 125, 8, "context of 128"),
        ([2], 0, "at least 1"),
        ([2, 31], 8, "another tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            decode([prompt], new)
    for wrong in (0.0, 1.01, -0.5, float("nan")):
        for make in (Threshold, lambda t: Hybrid(t, 4), lambda t: TokenEditing(t, 0.9), lambda t: TokenEditing(0.9, t)):
            with pytest.raises(ValueError, match=r"\(0, 1\]"):
                make(wrong)
    for wrong in (Factor, EntropyThreshold):
        with pytest.raises(ValueError, match="above 0"):
            wrong(0.0)
    for wrong in (
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"repeat_penalty": 0.0},
        {"tempo": 1},
        {"temperature": float("inf")},
        {"guidance_scale": float("nan")},
        {"seed": 2**63},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make_decoder(net, {"name": "one_token"}, sampling=wrong)
    with pytest.raises(ValueError, match="does not divide max_new_tokens 10"):
        make_decoder(network("bidirectional"), **compatibility.llada(8, 16, 8))([[2]], 10)
    with pytest.raises(ValueError, match="block_length 8 must divide gen_length 10"):
        compatibility.llada(8, 10, 8)
    for wrong in (0, 2.5, "4"):
        for make in (FixedSteps, UniformTime, lambda steps: Hybrid(0.9, steps)):
            with pytest.raises(ValueError, match="at least 1"):
                make(wrong)
    for wrong, words in (
        ({"name": "tokens_per_step"}, "takes tokens"),
        ({"name": "one_token", "tokens": 2}, "takes no options"),
        ({"name": "tokens_per_step", "tokens": 0}, "from 1 to"),
        ({"name": "tokens_per_step", "tokens": 9}, "from 1 to"),
        ({"name": "threshold"}, "missing"),
        ({"name": "threshold", "threshold": 0.9, "steps": 3}, "unexpected"),
        ({"threshold": 0.9}, "unknown policy 'None'"),
    ):
        with pytest.raises(ValueError, match=words):
            make_policy(wrong, BLOCK)
    with pytest.raises(ValueError, match="never"):
        compatibility.Quirks(stop="sometimes")
    with pytest.raises(ValueError, match="Did you mean 'threshold'"):
        make_policy({"name": "treshold"}, BLOCK)
    with pytest.raises(ValueError, match="block_tokens"):
        DraftGuesser(network(block=4), net, 2)
    with pytest.raises(ValueError, match="policy"):
        make_decoder(net)
    with torch.no_grad():
        net.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        decode([[2, 3]], 8)

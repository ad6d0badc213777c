"""A causal network in the block loop: one-position blocks, each proposed by the token before it."""

import pytest
import torch

from model.network.config import NetworkConfig
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer
from model.samplers import causal_targets, compatibility
from model.samplers.block_loop import BlockDecoder
from model.samplers.decode import make_decoder
from model.samplers.guesses import StaleGuesser
from model.samplers.policies import FixedSteps, LeftToRight, Threshold
from model.samplers.sampling import GREEDY, Asked, Proposer, Sampling
from tests.model.samplers.test_block_loop import EOS, network, prompts

VOCABULARY = 31
WAYS = {
    "greedy": GREEDY,
    "drawn": Sampling(1.5, seed=4),
    "from the likeliest": Sampling(1.5, top_k=9, top_p=0.9, seed=5),
    "penalised": Sampling(repeat_penalty=1.7),
    "drawn and penalised": Sampling(1.2, repeat_penalty=1.3, seed=6),
}


def causal(**changes) -> Transformer:
    """An autoregressive network: nothing in its vocabulary is a mask."""
    config = NetworkConfig(
        VOCABULARY,
        24,
        2,
        2,
        32,
        attention="causal",
        eos_token_id=EOS,
        maximum_positions=64,
        tie_embeddings=False,
        **changes,
    )
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(2))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(9)
    return net.double().eval()


def recomputed(net: Transformer, index: int, prompt: list[int], new: int, sampling: Sampling) -> list[int]:
    """The answer written plainly: the whole text through the network for every token, no cache, no batch."""
    tokens, proposer = list(prompt), Proposer(sampling, net.config.mask_token_id)
    while len(tokens) - len(prompt) < new and EOS not in tokens[len(prompt) :]:
        row = torch.tensor([tokens])
        positions = torch.arange(len(tokens))[None]
        logits = net.head(net(row, positions, AttentionPattern("causal", torch.zeros_like(row), positions)))[0, -1:]
        present = torch.zeros(1, logits.shape[1], dtype=torch.bool)
        present[0, tokens] = sampling.repeat_penalty != 1.0
        place = torch.zeros(1, dtype=torch.long)
        asked = Asked(place, place, place, torch.tensor([[index], [len(tokens)], [0], [0]]), present)
        tokens.append(int(proposer.propose(proposer.guided(logits, asked), asked)[0]))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("changes", [{}, {"embedding_size": 40}, {"mask_token_id": 30}], ids=["", "padded", "mask"])
def test_with_cache_and_batch_the_answers_are_those_of_recomputing_every_prefix(way, changes):
    net, asked = causal(**changes), prompts(5)
    expected = [recomputed(net, index, prompt, 12, WAYS[way]) for index, prompt in enumerate(asked)]
    assert len(set(map(tuple, expected))) >= 3
    for batch_rows in (1, 3):
        found = make_decoder(net, None, batch_rows, sampling=WAYS[way])(asked, 12)
        assert [answer.tokens for answer in found] == expected


def test_counters_say_what_was_done():
    net, asked = causal(), prompts(5)
    for prompt, answer in zip(asked, make_decoder(net, None, 2)(asked, 12), strict=True):
        count = len(answer.tokens)
        assert answer.revealed_at == list(range(1, count + 1)) and answer.tokens_per_forward == 1.0
        assert {name: value for name, value in answer.counters.items() if value} == {
            "target_forwards": count,
            "steps": count,
            "rows_verified": count,
            "target_tokens": len(prompt) + count - 1,  # the last token is never read
        }
        assert 0 < answer.smallest_gap < float("inf") == answer.smallest_margin  # no confidence decides anything
        assert answer.cache == "exact" and set(answer.seconds) == {"target", "draft", "host"}


def test_a_long_prompt_is_read_in_pieces_of_which_the_last_one_decodes(monkeypatch):
    net, asked = causal(), [[5 + row % 9] * length for row, length in enumerate((30, 7, 8, 9, 1))]
    whole = make_decoder(net, None, 3)(asked, 10)
    monkeypatch.setattr(causal_targets, "PREFILL_TOKENS", 8)
    pieces = make_decoder(net, None, 3)(asked, 10)
    assert [answer.tokens for answer in pieces] == [answer.tokens for answer in whole]
    assert [answer.counters["prefill_forwards"] for answer in pieces] == [3, 0, 0, 1, 0]
    for one, other in zip(pieces, whole, strict=True):
        assert one.counters | {"prefill_forwards": 0} == other.counters


def test_whatever_policy_is_named_a_causal_network_writes_the_next_token():
    net, asked = causal(), prompts(3)
    plain = make_decoder(net)(asked, 9)
    for name in ({"name": "threshold", "threshold": 0.9}, {"name": "one_token"}, {"name": "left_to_right"}):
        assert make_decoder(net, name)(asked, 9) == plain
    with pytest.raises(ValueError, match="Did you mean 'threshold'"):
        make_decoder(net, {"name": "treshold"})


@pytest.mark.parametrize("attention", ["block_causal", "bidirectional"])
def test_a_diffusion_network_writes_left_to_right_as_well(attention):
    for answer in BlockDecoder(network(attention), LeftToRight(), 2)(prompts(3), 13):
        assert answer.revealed_at == list(range(1, len(answer.tokens) + 1))


def test_what_a_causal_network_cannot_do_is_refused():
    net = causal()
    for options, words in (
        ({"policy": Threshold(0.9)}, "left_to_right"),
        ({"guesser": StaleGuesser(2)}, "without guesses"),
        ({"sampling": Sampling(guidance_scale=1.0)}, "no mask token"),
        ({"block_tokens": 4}, "block_tokens is 4"),
        ({"cache": "none"}, "exact prefix cache"),
        ({"quirks": compatibility.Quirks(mask_counts=True)}, "quirks"),
    ):
        with pytest.raises(ValueError, match=words):
            BlockDecoder(net, **{"policy": LeftToRight()} | options)
    for prompt, words in (([], "empty"), ([2, 31], "another tokenizer"), ([2] * 60, "context of 64")):
        with pytest.raises(ValueError, match=words):
            make_decoder(net)([prompt], 5)
    with pytest.raises(ValueError, match="no mask token: run it through"):
        BlockDecoder(Transformer(NetworkConfig(31, 24, 2, 2, 32, attention="bidirectional")), FixedSteps(4))
    with torch.no_grad():
        net.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        make_decoder(net)([[2, 3]], 5)

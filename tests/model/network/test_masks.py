"""Masks are proved by gradient leakage: what may not be seen has exactly no influence, what may be seen has some."""

import pytest
import torch

from model.network.config import NetworkConfig
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer


def network(seed: int = 0) -> Transformer:
    config = NetworkConfig(
        vocabulary_size=20,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        feed_forward_size=24,
        block_tokens=4,
        mask_token_id=19,
    )
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return net.double()


def influence(pattern: AttentionPattern) -> torch.Tensor:
    """[query, key] of batch row 0: whether the embedding at `key` moves the output at `query` (through one layer)."""
    net = network()
    rows = pattern.documents.shape[1]
    tokens = torch.arange(rows)[None] % 18
    noise = torch.zeros(1, rows, 16, dtype=torch.float64, requires_grad=True)
    hidden = net(tokens, pattern.positions, pattern, noise)
    seen = torch.zeros(rows, rows, dtype=torch.bool)
    for query in range(rows):
        (gradient,) = torch.autograd.grad(hidden[0, query].sum(), noise, retain_graph=True)
        seen[query] = gradient[0].abs().sum(-1) > 0
    return seen


DOCUMENTS = torch.tensor([[0] * 8 + [1] * 6 + [-1] * 2])
POSITIONS = torch.tensor([[*range(8), *range(6), 0, 0]])


def expected(kind: str) -> torch.Tensor:
    rows = DOCUMENTS.shape[1]
    want = torch.zeros(rows, rows, dtype=torch.bool)
    for q in range(rows):
        for k in range(rows):
            same = DOCUMENTS[0, q] == DOCUMENTS[0, k] and DOCUMENTS[0, q] >= 0
            rule = {
                "causal": POSITIONS[0, k] <= POSITIONS[0, q],
                "bidirectional": True,
                "block_causal": POSITIONS[0, k] // 4 <= POSITIONS[0, q] // 4,
            }[kind]
            want[q, k] = (same and rule) or q == k
    return want


@pytest.mark.parametrize("kind", ["causal", "bidirectional", "block_causal"])
def test_a_row_sees_exactly_what_its_rule_allows_inside_its_document(kind):
    pattern = AttentionPattern(kind, DOCUMENTS, POSITIONS, block_tokens=4)
    assert torch.equal(influence(pattern), expected(kind))


def test_a_noisy_block_sees_itself_and_earlier_clean_blocks_and_clean_rows_never_see_noise():
    positions = torch.arange(8).repeat(2)[None]
    noisy = torch.arange(16)[None] < 8
    seen = influence(AttentionPattern("block_diffusion", torch.zeros(1, 16, dtype=torch.long), positions, 4, noisy))
    for q in range(16):
        for k in range(16):
            block_q, block_k = int(positions[0, q]) // 4, int(positions[0, k]) // 4
            own, earlier = k < 8 and block_k == block_q, k >= 8 and block_k < block_q
            want = own or earlier if q < 8 else k >= 8 and block_k <= block_q
            assert bool(seen[q, k]) == want, (q, k)


def test_asking_for_some_rows_gives_the_rows_of_the_whole_answer():
    net, rng = network(), torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 18, (3, 16), generator=rng)
    pattern = AttentionPattern("block_causal", DOCUMENTS.expand(3, -1), POSITIONS.expand(3, -1), 4)
    asked = torch.rand(3, 16, generator=rng) < 0.3
    asked[1] = False  # a row may ask for nothing
    whole = net(tokens, pattern.positions, pattern)
    assert torch.allclose(net(tokens, pattern.positions, pattern, asked=asked), whole[asked], atol=1e-12)

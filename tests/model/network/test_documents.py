"""A flat row of whole documents attends as the padded batch of them does."""

import pytest
import torch

from model.network import repeated_shapes
from model.network.config import NetworkConfig
from model.network.documents import FlatDocuments
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer

LENGTHS = (5, 9, 9, 12)
GROUPS = ((1, 8), (3, 12))  # padded lengths


@pytest.mark.parametrize("kind", ["causal", "bidirectional", "block_causal"])
@pytest.mark.parametrize("some", [False, True])
def test_a_flat_row_of_documents_is_their_padded_batch(kind, some):
    config = NetworkConfig(vocabulary_size=30, hidden_size=16, num_layers=2, num_heads=4, feed_forward_size=24,
                           num_key_value_heads=2)  # fmt: skip
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 30, (4, 12), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(12).expand(4, -1)
    real = positions < torch.tensor(LENGTHS)[:, None]
    asked = real & (torch.rand(4, 12, generator=torch.Generator().manual_seed(2)) < 0.4) if some else real
    padded = net(tokens, positions, AttentionPattern(kind, real.long() - 1, positions, 4), None, asked)
    flat = [torch.cat((values[0, :8], values[1:].flatten()))[None] for values in (tokens, positions, real, asked)]
    pattern = FlatDocuments(kind, GROUPS, flat[1], flat[2], 4)
    found = net(flat[0], flat[1], pattern, None, flat[3] if some else None)
    assert torch.allclose(found if some else found[flat[2]], padded, atol=1e-6)


@pytest.mark.parametrize("some", [False, True])
def test_rows_that_are_nobodys_change_neither_states_nor_gradients(some, monkeypatch):
    config = NetworkConfig(vocabulary_size=30, hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=24)
    tokens = torch.randint(0, 30, (1, 44), generator=torch.Generator().manual_seed(1))
    positions = torch.cat((torch.arange(8), torch.arange(12).repeat(3)))[None]
    pattern = FlatDocuments("block_causal", GROUPS, positions, torch.ones(1, 44, dtype=torch.bool), 4)
    asked = torch.rand(1, 44, generator=torch.Generator().manual_seed(2)) < 0.4 if some else None
    found = []
    for spare in (0, 7):
        monkeypatch.setattr("model.network.transformer.spare_rows", lambda rows, like, spare=spare: spare)
        net = Transformer(config).double()
        net.initialise(torch.Generator().manual_seed(0))
        states = net(tokens, positions, pattern, None, asked)
        states.square().sum().backward()
        found.append([states, *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)])
    assert len(found[0]) > 5 and all(torch.allclose(*pair, rtol=1e-10, atol=1e-12) for pair in zip(*found, strict=True))


def test_only_narrow_rows_on_a_cpu_are_rounded_up():
    narrow, wide = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    assert [rows + repeated_shapes.spare_rows(rows, narrow) for rows in (1, 100, 128, 300)] == [128, 128, 256, 384]
    assert repeated_shapes.spare_rows(100, wide) == repeated_shapes.spare_rows(100, narrow.to("meta")) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert repeated_shapes.spare_rows(100, wide) == 28

"""A flat row of whole documents attends as the padded batch of them does."""

import pytest
import torch

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

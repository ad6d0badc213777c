"""A network, batches and a loss small enough to enumerate."""

import torch

from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.batch import Batch

MASK, BLOCK = 11, 4


def network(seed: int = 0, layers: int = 2) -> Transformer:
    config = NetworkConfig(
        vocabulary_size=12,
        hidden_size=16,
        num_layers=layers,
        num_heads=2,
        feed_forward_size=24,
        block_tokens=BLOCK,
        mask_token_id=MASK,
        attention="bidirectional",
    )
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15)
    return net.double()


def batch(rows: int = 3, length: int = 12, prompt: int = 3, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, MASK, (rows, length), generator=rng)
    positions = torch.arange(length).expand(rows, -1)
    return Batch(tokens, torch.zeros_like(tokens), positions, positions >= prompt)


def loss_of(net, objective, data: Batch, seed: int) -> torch.Tensor:
    view = objective.corrupt(data, torch.Generator().manual_seed(seed))
    terms = objective.score(net(view.tokens, view.positions, view.pattern, None, view.graded), net.head, view)
    return sum(objective.weights[name] * total / count.clamp_min(1) for name, (total, count) in terms.items())


def packed() -> Batch:
    """Two rows of two documents each, prompts and padding included; documents start on the block grid."""
    lengths, prompts = ((10, 4), (3, 8)), ((5, 1), (2, 0))
    tokens = torch.randint(0, MASK, (2, 20), generator=torch.Generator().manual_seed(1))
    documents, positions, graded = torch.full((2, 20), -1), torch.zeros(2, 20).long(), torch.zeros(2, 20).bool()
    for row in range(2):
        for number, begin in enumerate((0, 12)):
            length, prompt = lengths[row][number], prompts[row][number]
            here = slice(begin, begin + length)
            documents[row, here], positions[row, here] = number, torch.arange(length)
            graded[row, begin + prompt : begin + length] = True
    return Batch(tokens, documents, positions, graded)

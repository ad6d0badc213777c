"""A block is hidden as it stood before one of the forwards that revealed it."""

import numpy as np
import torch

from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.visited_states import NEVER, VisitedStates, draw_states
from model.text.batch import Batch

TIMES = torch.tensor([[NEVER, NEVER, 1, 2, 2, 1, 5, NEVER, NEVER, NEVER, NEVER, NEVER]])
GRADED = torch.tensor([[False, False, True, True, True, True, True, True, False, False, False, False]])
STATES = (  # of the blocks of four: what is hidden before the forwards 1, 2, ...
    {(2, 3), (3,)},
    {(4, 5, 6, 7), (4, 6, 7), (6, 7), (7,)},
)


def test_every_state_of_a_block_is_drawn_as_often_and_no_other():
    seen: list[dict[tuple[int, ...], int]] = [{}, {}]
    rng = torch.Generator().manual_seed(0)
    for _ in range(2000):
        hidden, weights = draw_states(TIMES, GRADED, 4, rng)
        for block, found in enumerate(seen):
            places = tuple((torch.nonzero(hidden[0, 4 * block : 4 * block + 4]).flatten() + 4 * block).tolist())
            found[places] = found.get(places, 0) + 1
            graded = int(GRADED[0, 4 * block : 4 * block + 4].sum())
            assert weights[0, 4 * block] == graded / len(places)
        assert not hidden[0, 8:].any()
    for found, wanted in zip(seen, STATES, strict=True):
        assert set(found) == wanted
        assert all(abs(count - 2000 / len(wanted)) < 120 for count in found.values())


def test_rows_are_hidden_by_the_times_of_their_own_number():
    tokens = torch.arange(24).view(2, 12) + 10
    positions = torch.arange(12).expand(2, 12)
    graded = torch.ones(2, 12, dtype=torch.bool)
    samples = torch.tensor([[2, 0], [0, 0]])
    batch = Batch(tokens, torch.zeros(2, 12, dtype=torch.long), positions, graded, samples)
    times = np.full((3, 16), NEVER, np.uint16)
    times[0] = 1  # every block at once: all hidden
    times[2, :12] = np.tile([1, 2, 3, 4], 3)  # from left to right: a block hides its end
    objective = VisitedStates(BlockDiffusion(1, 4), times)
    for seed in range(5):
        view = objective.corrupt(batch, torch.Generator().manual_seed(seed))
        hidden = set(view.targets.tolist())
        assert set(tokens[1].tolist()) <= hidden
        for block in tokens[0].view(3, 4).tolist():
            kept = [token for token in block if token not in hidden]
            assert kept == block[: len(kept)] and len(kept) < 4

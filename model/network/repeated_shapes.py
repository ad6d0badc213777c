"""Row counts that repeat. On a CPU oneDNN compiles a kernel for every new shape of a bfloat16 product, which takes longer than
a small product itself; flat rows have another length in every step. Rows that nobody reads round them up.
"""

import torch
from torch import Tensor

ROUND_TO = 128  # rows; few lengths occur, and a few in a hundred rows are spare


def spare_rows(rows: int, like: Tensor) -> int:
    """How many rows to add to so many: 1 to ROUND_TO where shapes cost something, else 0."""
    narrow = like.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu")
    return ROUND_TO - rows % ROUND_TO if narrow and like.device.type == "cpu" else 0

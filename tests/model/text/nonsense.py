"""Seeded text for the tests."""

import random
from collections.abc import Iterator

SPACED = "the a cat dog house runs sleeps red blue 12 345 don't it's plus equals 小猫 在 房子 里 睡觉。 x=1; print(x)"
WORDS = [*SPACED.split(), "\n"]


def sentences(seed: int, count: int, longest: int = 30) -> Iterator[str]:
    """Seeded nonsense, in English, Chinese and code."""
    rng = random.Random(seed)
    for _ in range(count):
        yield " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))

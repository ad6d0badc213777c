"""The facts of the small world: who lives where, owns, does and drinks what, and what things cost.

Everything is an index (person 3, town 5), so that the same facts can be worded in any language. Names of one language
are in its wording file; the lengths of the lists there and the sizes below belong together (a test compares them).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

MOST_PEOPLE = 32
NUM_TOWNS = 8
NUM_PETS = 5  # pet k eats food k
NUM_JOBS = 5  # job k uses tool k
NUM_DRINKS = 4
LINKS = ("friend", "boss", "coach")
ATTRIBUTES = ("home", "age", "pet", "job", "drink")
LAST_KM = 10


@dataclass(frozen=True)
class World:
    """Facts by index. `links[k][p]`: who is person p's LINKS[k]; `towns_km[t]`: place of a town on the road."""

    num_people: int
    links: tuple[tuple[int, ...], ...]
    home: tuple[int, ...]
    age: tuple[int, ...]
    pet: tuple[int, ...]
    job: tuple[int, ...]
    drink: tuple[int, ...]
    towns_km: tuple[int, ...]
    food_price: tuple[int, ...]
    tool_price: tuple[int, ...]
    drink_price: tuple[int, ...]

    def attribute(self, person: int, attribute: str) -> int:
        """Index of a person's town, pet, job or drink; for "age" the number of years."""
        return getattr(self, attribute)[person]


def build_world(num_people: int, seed: int) -> World:
    """The world of one seed; the same in every process and language."""
    if not 8 <= num_people <= MOST_PEOPLE:
        raise ValueError(
            f"num_people is {num_people}; it must lie between 8 and {MOST_PEOPLE}: correct toy_world.num_people"
        )
    rng = Random(f"toy_world facts {seed}")

    def spread(kinds: int) -> tuple[int, ...]:
        # Every kind occurs about equally often: guessing the most frequent one must not pay.
        values = [index % kinds for index in range(num_people)]
        rng.shuffle(values)
        return tuple(values)

    return World(
        num_people=num_people,
        links=tuple(_ring(num_people, rng) for _ in LINKS),
        home=spread(NUM_TOWNS),
        age=tuple(6 + index for index in spread(15)),
        pet=spread(NUM_PETS),
        job=spread(NUM_JOBS),
        drink=spread(NUM_DRINKS),
        towns_km=tuple(rng.sample(range(1, LAST_KM + 1), NUM_TOWNS)),
        food_price=tuple(rng.sample(range(2, 10), NUM_PETS)),
        tool_price=tuple(rng.sample(range(2, 10), NUM_JOBS)),
        drink_price=tuple(rng.sample(range(2, 6), NUM_DRINKS)),
    )


def _ring(size: int, rng: Random) -> tuple[int, ...]:
    """A random permutation that is one cycle: nobody is linked to themselves, nobody is linked to twice."""
    order = rng.sample(range(size), size)
    following = [0] * size
    for index, person in enumerate(order):
        following[person] = order[(index + 1) % size]
    return tuple(following)

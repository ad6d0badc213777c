"""An objective that changes as training goes on: the loop asks for the objective of its step."""

from collections.abc import Callable
from dataclasses import dataclass

from model.objectives.objective import Objective


@dataclass(frozen=True)
class Curriculum:
    """`at(step)` is the objective of a step counted from 0; all of them report terms of the same names."""

    at: Callable[[int], Objective]

"""The benchmark whose answers are programs: a Python expression, scored by running it elsewhere, in a sandbox."""

from __future__ import annotations

from random import Random

from model.corpora.toy_world_facts import World
from model.corpora.toy_world_tasks import Task, Voice

NUM_CHECKS = 3
VARIABLES = "abcd"
TESTS = {
    "above": lambda value, k: value > k,
    "below": lambda value, k: value < k,
    "not": lambda value, k: value != k,
    "even": lambda value, k: value % 2 == 0,
    "odd": lambda value, k: value % 2 == 1,
}
MAPS = {
    "add": lambda value, k: value + k,
    "take": lambda value, k: value - k,
    "times": lambda value, k: value * k,
    "square": lambda value, k: value * value,
}
OUTERS = {"sum": sum, "max": max, "min": min, "list": list, "sorted": sorted, "count": len}
TEST_CODE = {
    "above": ("{v} > {k}", "{k} < {v}"),
    "below": ("{v} < {k}", "{k} > {v}"),
    "not": ("{v} != {k}",),
    "even": ("{v} % 2 == 0",),
    "odd": ("{v} % 2 == 1",),
}
MAP_CODE = {
    "add": ("{v} + {k}", "{k} + {v}"),
    "take": ("{v} - {k}",),
    "times": ("{v} * {k}", "{k} * {v}"),
    "square": ("{v} * {v}", "{v} ** 2"),
}


class Writing(Task):
    """Write an expression of xs: ((tests to pass), (changes to each number), what is given of them).

    Tests and changes are (kind, number), with number 0 where the kind needs none.
    """

    name, category = "writing", "coding"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        num_tests, num_maps = {1: rng.choice(((1, 0), (0, 1))), 2: (1, 1), 3: (2, 1), 4: (2, 2)}[level]
        most = 20 if level == 1 else 9  # a single step has few questions unless its numbers are larger
        tests = tuple(
            (test, 0 if test in ("even", "odd") else rng.randint(2, most)) for test in _pick(TESTS, num_tests, rng)
        )
        maps = tuple(
            (change, 0 if change == "square" else rng.randint(2, most)) for change in _pick(MAPS, num_maps, rng)
        )
        outers = [outer for outer in OUTERS if outer != "count" or not maps]
        params = tests, maps, rng.choice(outers)
        kinds = {test for test, _ in tests}
        if kinds == {"even", "odd"} or (
            kinds == {"above", "below"} and dict(tests)["above"] + 2 >= dict(tests)["below"]
        ):
            return None  # hardly any number would pass
        return params

    def essence(self, params: tuple) -> tuple:
        return tuple(sorted(params[0])), params[1], params[2]

    def ask(self, voice: Voice, params: tuple) -> str:
        tests, maps, outer = params
        kept = [voice.say(f"write_{test}", k=k) for test, k in tests]
        wishes = [voice.say("write_keep", x=voice.wording["and"].join(kept))] if kept else []
        wishes += [voice.say(f"write_{change}", k=k) for change, k in maps]
        return voice.say("write_ask", x=voice.clauses([*wishes, voice.say(f"write_{outer}")]))

    def _solve(self, voice: Voice, params: tuple) -> tuple[list[str], str]:
        """(the steps, the program): one variable name and one way to write each part, the same in both."""
        tests, maps, outer = params
        rng = voice.rng
        v = rng.choice(VARIABLES)
        test = " and ".join(rng.choice(TEST_CODE[kind]).format(v=v, k=k) for kind, k in rng.sample(tests, len(tests)))
        value = v
        for kind, k in maps:
            inner = v if value == v else f"({value})"
            value = rng.choice(MAP_CODE[kind]).format(v=inner, k=k)
        steps = [voice.say("write_test", v=v, e=test)] if tests else []
        steps += [voice.say("write_value", v=v, e=value)] if maps else []
        call = {"count": "len", "list": "list"}.get(outer, outer)
        steps = [voice.say("write_each", v=v), *rng.sample(steps, len(steps)), voice.say("write_outer", e=call)]
        loop = f"{value} for {v} in xs" + (f" if {test}" if test else "")
        bare = outer not in ("list", "count") and rng.random() < 0.5
        body = f"[{loop}]" if outer == "list" else f"{call}({loop})" if bare else f"{call}([{loop}])"
        return steps, body

    def work(self, voice: Voice, params: tuple) -> list[str]:
        steps, program = self._solve(voice, params)
        return [*steps, f"\n{program}\n"]

    def answer(self, voice: Voice, params: tuple) -> tuple[str, str]:
        steps, program = self._solve(voice, params)
        return f"{voice.join([voice.say('opening'), *steps])}\n#### {program}", program

    def final(self, voice: Voice, params: tuple) -> str:
        return self._solve(voice, params)[1]

    def extras(self, params: tuple) -> dict:
        """`program_check`: [expression, the text Python prints for its value] for a few inputs, limits included."""
        tests, _, _ = params
        rng = Random(repr(params))
        limits = [k + step for test, k in tests for step in (0, 1, -1) if k] or [3]
        checks: list[list[str]] = []
        while len(checks) < NUM_CHECKS:
            numbers = rng.sample(limits, min(2, len(limits))) + rng.sample(range(0, 13), 4)
            rng.shuffle(numbers)
            if any(self._passes(number, tests) for number in numbers):
                checks.append([f"f({numbers})", repr(self._run(params, numbers))])
        return {"program_check": checks}

    def _passes(self, number: int, tests: tuple) -> bool:
        return all(TESTS[test](number, k) for test, k in tests)

    def _run(self, params: tuple, numbers: list[int]) -> object:
        """What a right program returns, worked out without running any program text."""
        values = [number for number in numbers if self._passes(number, params[0])]
        for change, k in params[1]:
            values = [MAPS[change](value, k) for value in values]
        return OUTERS[params[2]](values)


def _pick(kinds: dict, count: int, rng: Random) -> list[str]:
    return rng.sample(sorted(kinds), count)


TASKS = (Writing(),)

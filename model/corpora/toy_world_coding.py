"""Two of the three coding benchmarks: trace a program, and follow a list through its methods.

These two are scored by what the program prints; the third coding benchmark is in toy_world_writing.
"""

from __future__ import annotations

from random import Random

from model.corpora.toy_world_facts import World
from model.corpora.toy_world_tasks import Task, Voice, apply, commutative, running_sum

VARIABLES = "abcdxyz"


class _Program(Task):
    """A task whose question shows a program below its ask."""

    category = "coding"

    def code(self, voice: Voice, params: tuple) -> str:
        raise NotImplementedError

    def ask(self, voice: Voice, params: tuple) -> str:
        return voice.say("trace_ask")

    def question(self, voice: Voice, params: tuple) -> str:
        return f"{self.ask(voice, params)}\n{self.code(voice, params)}"


class Tracing(_Program):
    """What assignments print: (variable names, statements, printed (operator, variable, variable)).

    A statement is a number, or (operator, variable, variable or "=number"); variables are places among the statements.
    """

    name = "tracing"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        num_numbers, num_sums = {1: (2, 1), 2: (2, 2), 3: (2, 3), 4: (3, 4)}[level]
        cap = {1: 9, 2: 25, 3: 40, 4: 99}[level]
        statements: list = [rng.randint(1, 9) for _ in range(num_numbers)]
        unused = list(range(num_numbers))  # every line but the last ones is read by a later one
        for known in range(num_numbers, num_numbers + num_sums):
            left = unused.pop(rng.randrange(len(unused)))
            if len(unused) > 1 or (unused and rng.random() < 0.25):
                right = unused.pop(rng.randrange(len(unused)))
            else:
                right = rng.randrange(known) if rng.random() < 0.35 else f"={rng.randint(2, 9)}"
            statements.append((rng.choice("+-" if level == 1 else "++--*"), left, right))
            unused.append(known)
        if len(unused) == 1:
            unused.append(rng.randrange(len(statements) - 1))
        printed = (rng.choice("+-"), *rng.sample(unused, 2))
        values = self._values(statements)
        if not 0 <= min(values) <= max(values) <= cap or not 0 <= self._result(values, printed) <= cap:
            return None
        if any(
            step[0] == "*" and max(self._operands(step, values)) > 9 for step in statements if isinstance(step, tuple)
        ):
            return None
        letters = VARIABLES[: len(statements)] if level == 1 else rng.sample(VARIABLES, len(statements))
        return "".join(letters), tuple(statements), printed

    def _operands(self, step: tuple, values: list[int]) -> tuple[int, int]:
        right = step[2]
        return values[step[1]], int(right[1:]) if isinstance(right, str) else values[right]

    def _values(self, statements: list | tuple) -> list[int]:
        values: list[int] = []
        for step in statements:
            values.append(apply(step[0], *self._operands(step, values)) if isinstance(step, tuple) else step)
        return values

    def _result(self, values: list[int], printed: tuple) -> int:
        return apply(printed[0], values[printed[1]], values[printed[2]])

    def _tree(self, statements: list | tuple, place: object) -> object:
        """What a place or step comes to as one expression of numbers, whatever its variables are called."""
        if isinstance(place, str):
            return int(place[1:])
        step = statements[place] if isinstance(place, int) else place
        if not isinstance(step, tuple):
            return step
        return step[0], self._tree(statements, step[1]), self._tree(statements, step[2])

    def essence(self, params: tuple) -> tuple:
        return commutative(self._tree(params[1], params[2]))

    def _written(self, names: str, step: tuple) -> str:
        left, right = (side[1:] if isinstance(side, str) else names[side] for side in step[1:])
        return f"{left} {step[0]} {right}"

    def code(self, voice: Voice, params: tuple) -> str:
        names, statements, printed = params
        lines = [
            f"{name} = {self._written(names, step) if isinstance(step, tuple) else step}"
            for name, step in zip(names, statements, strict=True)
        ]
        return "\n".join([*lines, f"print({self._written(names, printed)})"])

    def work(self, voice: Voice, params: tuple) -> list[str]:
        names, statements, printed = params
        values, sentences = self._values(statements), []
        waiting, known = list(range(len(statements))), set()
        while waiting:  # any order in which a line comes after the lines it reads
            ready = [place for place in waiting if self._reads(statements[place]) <= known]
            place = voice.rng.choice(ready)
            waiting.remove(place)
            known.add(place)
            sentences.append(self._sentence(voice, names, statements[place], values, place))
        result = self._result(values, printed)
        text = f"{values[printed[1]]} {printed[0]} {values[printed[2]]} = {result}"
        sentences.append(voice.say("trace_print", e=self._written(names, printed), sum=text))
        return [*sentences, voice.say("trace_end", n=result)]

    def _reads(self, step: object) -> set[int]:
        return {side for side in step[1:] if isinstance(side, int)} if isinstance(step, tuple) else set()

    def _sentence(self, voice: Voice, names: str, step: object, values: list[int], place: int) -> str:
        if not isinstance(step, tuple):
            return voice.say("trace_number", v=names[place], n=step)
        left, right = self._operands(step, values)
        text = f"{left} {step[0]} {right} = {values[place]}"
        return voice.say("trace_step", v=names[place], e=self._written(names, step), sum=text, n=values[place])

    def final(self, voice: Voice, params: tuple) -> str:
        return str(self._result(self._values(params[1]), params[2]))


class Lists(_Program):
    """What is printed of a list after calls: (name, numbers, ((method, argument), ...), printed)."""

    name = "lists"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        numbers = rng.sample(range(1, 10), {1: rng.choice((2, 3)), 4: 4}.get(level, 3))
        calls, so_far = [], numbers
        for _ in range(level):
            call = rng.choice(("append", "pop") if level == 1 else ("append", "pop", "pop0", "reverse", "sort"))
            if (call == "append" and len(so_far) > 3) or (call in ("pop", "pop0") and len(so_far) < 3):
                return None
            calls.append((call, rng.randint(1, 9) if call == "append" else 0))
            changed = self._called(so_far, calls[-1])
            if changed == so_far:
                return None
            so_far = changed
        if level < 3 and len(so_far) > 3:
            return None  # long sums and lists would be the longest answers of the suite
        places = rng.sample(range(len(so_far)), 2)
        pair = ("pair", *places)
        printed = pair if level == 1 else rng.choice((("sum",), ("range",), pair, pair))
        return rng.randrange(3), tuple(numbers), tuple(calls), printed

    def essence(self, params: tuple) -> tuple:
        _, numbers, calls, printed = params
        # What is thrown away by the first call shows nowhere in the worked answer.
        return tuple(self._called(list(numbers), calls[0])), calls, (printed[0], *sorted(printed[1:]))

    def _called(self, numbers: list[int], call: tuple) -> list[int]:
        method, argument = call
        changed = {
            "append": [*numbers, argument],
            "pop": numbers[:-1],
            "pop0": numbers[1:],
            "reverse": numbers[::-1],
            "sort": sorted(numbers),
        }
        return changed[method]

    def _call_text(self, call: tuple) -> str:
        method, argument = call
        return {"append": f"append({argument})", "pop0": "pop(0)"}.get(method, f"{method}()")

    def code(self, voice: Voice, params: tuple) -> str:
        index, numbers, calls, printed = params
        v = voice.names["list"][index]
        shown = {"sum": f"sum({v})", "range": f"max({v}) - min({v})"}.get(printed[0])
        shown = shown or f"{v}[{printed[1]}] + {v}[{printed[2]}]"
        return "\n".join(
            [f"{v} = {list(numbers)}", *(f"{v}.{self._call_text(call)}" for call in calls), f"print({shown})"]
        )

    def _last(self, params: tuple) -> list[int]:
        numbers = list(params[1])
        for call in params[2]:
            numbers = self._called(numbers, call)
        return numbers

    def work(self, voice: Voice, params: tuple) -> list[str]:
        v, numbers, sentences = voice.names["list"][params[0]], list(params[1]), []
        for call in params[2]:
            numbers = self._called(numbers, call)
            sentences.append(voice.say("list_call", v=v, call=self._call_text(call), list=numbers))
        sentences += self._print(voice, v, numbers, params[3])
        return [*sentences, voice.say("trace_end", n=self.final(voice, params))]

    def _print(self, voice: Voice, v: str, numbers: list[int], printed: tuple) -> list[str]:
        if printed[0] == "sum":
            side = voice.rng.choice(("left", "right"))
            return [voice.say(f"list_{side}"), *running_sum(voice, numbers if side == "left" else numbers[::-1])]
        if printed[0] == "range":
            high, low = max(numbers), min(numbers)
            found = [voice.say("list_max", n=high), voice.say("list_min", n=low)]
            last = voice.say("sum", a=high, o="-", b=low, c=high - low)
        else:
            _, i, j = printed
            found = [voice.say("list_item", v=v, i=place, n=numbers[place]) for place in (i, j)]
            last = voice.say("sum", a=numbers[i], o="+", b=numbers[j], c=numbers[i] + numbers[j])
        return [*voice.rng.sample(found, 2), last]

    def final(self, voice: Voice, params: tuple) -> str:
        numbers, printed = self._last(params), params[3]
        if printed[0] == "sum":
            return str(sum(numbers))
        return str(max(numbers) - min(numbers) if printed[0] == "range" else numbers[printed[1]] + numbers[printed[2]])


TASKS = (Tracing(), Lists())

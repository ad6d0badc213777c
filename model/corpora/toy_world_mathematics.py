"""The three mathematics benchmarks: a story of gains and losses, an expression of several operators, and a purchase."""

from __future__ import annotations

from random import Random

from model.corpora.toy_world_facts import NUM_JOBS, World
from model.corpora.toy_world_tasks import Task, Voice, apply, commutative, running_sum

NUM_THING_NAMES = 4  # names of countable things


class Story(Task):
    """How many things are left: (start, gains (+) and losses (-), (thing, person))."""

    name, category = "story", "mathematics"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        start, most = rng.randint(2, 9), {1: 9, 2: 25, 3: 40, 4: 60}[level]
        changes = tuple(rng.randint(2, 9) * rng.choice((1, -1)) for _ in range(level + 1))
        total = start
        for change in changes:
            total += change
            if not 1 <= total <= most:
                return None
        if all(change > 0 for change in changes) or all(change < 0 for change in changes):
            return None
        return start, changes, (rng.randrange(NUM_THING_NAMES), rng.randrange(world.num_people))

    def essence(self, params: tuple) -> tuple:
        return params[0], tuple(sorted(params[1]))

    def _parts(self, voice: Voice, params: tuple) -> dict[str, str]:
        thing, person = params[2]
        return {"t": voice.names["things"][thing], "a": voice.names["people"][person]}

    def setting(self, voice: Voice, params: tuple) -> str:
        parts = self._parts(voice, params)
        sentences = [voice.say("story_has", n=params[0], **parts)]
        for change in params[1]:
            sentences.append(voice.say("story_more" if change > 0 else "story_less", n=abs(change), **parts))
        return voice.join(sentences)

    def ask(self, voice: Voice, params: tuple) -> str:
        return voice.say("story_ask", **self._parts(voice, params))

    def work(self, voice: Voice, params: tuple) -> list[str]:
        total, changes, _ = params
        parts = self._parts(voice, params)
        plan = voice.rng.choice(("in_order", "gains"))
        sentences = [voice.say(f"story_{plan}", n=total, **parts)]
        if plan == "gains":
            changes = sorted(changes, key=lambda change: change < 0)  # stable: both kinds keep their order
        for change in changes:
            text = f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change}"
            sentences.append(voice.say("story_plus" if change > 0 else "story_minus", n=abs(change), sum=text, **parts))
            total += change
        return [*sentences, voice.say("story_end", n=total, **parts)]

    def final(self, voice: Voice, params: tuple) -> str:
        return str(params[0] + sum(params[1]))


class Expression(Task):
    """The value of a tree (operator, left, right) of small numbers, reduced one operation at a time."""

    name, category = "expression", "mathematics"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        cap = {1: 9, 2: 30, 3: 60, 4: 99}[level]
        tree = self._row(rng) if level == 1 else self._grow(level + 1, rng)
        return tree if self._bounded(tree, cap) is not None else None

    def _grow(self, num_operators: int, rng: Random) -> object:
        if num_operators == 0:
            return rng.randint(2, 9)
        left = rng.randrange(num_operators)
        return (rng.choice("+-*"), self._grow(left, rng), self._grow(num_operators - 1 - left, rng))

    def _row(self, rng: Random) -> tuple:
        """Three numbers added or taken away from left to right: no brackets, no products."""
        numbers = [rng.randint(2, 9) for _ in range(3)]
        return (rng.choice("+-"), (rng.choice("+-"), numbers[0], numbers[1]), numbers[2])

    def _bounded(self, tree: object, cap: int) -> int | None:
        """The tree's value, or None where a step leaves 0..cap or multiplies numbers outside the table up to 9."""
        if not isinstance(tree, tuple):
            return tree
        left, right = self._bounded(tree[1], cap), self._bounded(tree[2], cap)
        if left is None or right is None or (tree[0] == "*" and not (2 <= left <= 9 and 2 <= right <= 9)):
            return None
        value = apply(tree[0], left, right)
        return value if 0 <= value <= cap else None

    def essence(self, params: tuple) -> tuple:
        return commutative(params)

    def ask(self, voice: Voice, params: tuple) -> str:
        return voice.say("expr_ask", e=written(params))

    def work(self, voice: Voice, params: tuple) -> list[str]:
        side = voice.rng.choice(("left", "right"))  # decides every expression that is written afterwards
        sentences, tree = [voice.say(f"expr_{side}", e=written(params))], params
        while isinstance(tree, tuple):
            text, tree = self._reduce(tree, side)
            sentences.append(
                voice.say("expr_step" if isinstance(tree, tuple) else "expr_last", sum=text, e=written(tree))
            )
        return [*sentences, voice.say("expr_end", n=tree)]

    def _reduce(self, tree: tuple, side: str) -> tuple[str, object]:
        """(the sum done, the tree with its leftmost or rightmost ready operation replaced by its value)."""
        operator, left, right = tree
        if not isinstance(left, tuple) and not isinstance(right, tuple):
            value = apply(operator, left, right)
            return f"{left} {operator} {right} = {value}", value
        if isinstance(left, tuple) and (side == "left" or not isinstance(right, tuple)):
            text, left = self._reduce(left, side)
        else:
            text, right = self._reduce(right, side)
        return text, (operator, left, right)

    def final(self, voice: Voice, params: tuple) -> str:
        return str(self._bounded(params, 10**6))


def written(tree: object) -> str:
    """A tree as a Python expression with no needless brackets."""
    if not isinstance(tree, tuple):
        return str(tree)
    operator, left, right = tree
    texts = [written(left), written(right)]
    for index, side in enumerate((left, right)):
        # On the right even a + (b + c) keeps its brackets: the text shows which operation is ready.
        if isinstance(side, tuple) and (
            (side[0] != "*" and (operator == "*" or index == 1)) or (operator == "*" and index == 1)
        ):
            texts[index] = f"({texts[index]})"
    return f"{texts[0]} {operator} {texts[1]}"


class Money(Task):
    """What a purchase costs or leaves: (mode, ((number, price, thing), ...), (price, tool) of one more, person)."""

    name, category = "money", "mathematics"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        num_kinds = {1: 1, 2: 2, 3: 3, 4: 3}[level]
        most = {1: (4, 5), 2: (5, 6), 3: (6, 7), 4: (9, 9)}[level]
        things = rng.sample(range(NUM_THING_NAMES), num_kinds)
        lines = tuple((rng.randint(2, most[0]), rng.randint(2, most[1]), thing) for thing in things)
        mode = rng.choice(("pays", "left"))
        return mode, lines, (rng.randint(2, 9), rng.randrange(NUM_JOBS)), rng.randrange(world.num_people)

    def essence(self, params: tuple) -> tuple:
        mode, lines, (price, _), _ = params
        return mode, tuple(sorted((number, cost) for number, cost, _ in lines)), price

    def _total(self, params: tuple) -> int:
        return sum(number * price for number, price, _ in params[1]) + params[2][0]

    def _purse(self, params: tuple) -> int:
        """The next full ten above the total."""
        return self._total(params) // 10 * 10 + 10

    def setting(self, voice: Voice, params: tuple) -> str:
        mode, lines, (price, tool), person = params
        name, things = voice.names["people"][person], voice.names["things"]
        phrases = [voice.say("money_many", n=number, t=things[thing], p=cost) for number, cost, thing in lines]
        phrases.append(voice.say("money_one", x=voice.names["tool"][tool], p=price))
        purse = voice.say("money_pays", a=name, n=self._purse(params)) if mode == "left" else ""
        return voice.join([purse, voice.say("money_set", a=name, x=voice.listing(phrases))])

    def ask(self, voice: Voice, params: tuple) -> str:
        return voice.say("money_ask_left" if params[0] == "left" else "money_ask", a=voice.names["people"][params[3]])

    def work(self, voice: Voice, params: tuple) -> list[str]:
        mode, lines, (price, tool), person = params
        name, things = voice.names["people"][person], voice.names["things"]
        sentences, costs = [], []
        for number, cost, thing in voice.rng.sample(lines, len(lines)):
            costs.append(number * cost)
            text = f"{number} * {cost} = {number * cost}"
            sentences.append(voice.say("money_cost", n=number, t=things[thing], p=cost, sum=text))
        sentences += running_sum(voice, costs)
        total = sum(costs)
        text = f"{total} + {price} = {total + price}"
        sentences.append(voice.say("money_more", x=_capital(voice.names["tool"][tool]), p=price, sum=text))
        total += price
        if mode == "pays":
            return [*sentences, voice.say("money_end", a=name, n=total)]
        purse = self._purse(params)
        sentences.append(voice.say("sum", a=purse, o="-", b=total, c=purse - total))
        return [*sentences, voice.say("money_left", a=name, n=purse - total)]

    def final(self, voice: Voice, params: tuple) -> str:
        total = self._total(params)
        return str(self._purse(params) - total if params[0] == "left" else total)


def _capital(text: str) -> str:
    """The text as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


TASKS = (Story(), Expression(), Money())

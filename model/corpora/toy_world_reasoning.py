"""The three reasoning benchmarks: ordering by comparisons, following swapped things, and counting days.

Everything needed is given in the question; the people are those of the world, but what happens to them is made up anew.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

from model.corpora.toy_world_facts import World
from model.corpora.toy_world_tasks import Task, Voice

NUM_THINGS = 4
SHORT_ROW = 3  # people in the easiest ordering
DAYS_PER_WEEK = 7


class Ordering(Task):
    """Who is (second) tallest, given comparisons of neighbours: (scale, people from most to least, asked rank).

    Ranks 0, 1 count from the most ("tallest"), -1, -2 from the least ("shortest").
    """

    name, category = "ordering", "reasoning"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        row = tuple(rng.sample(range(world.num_people), SHORT_ROW + level - 1))
        return rng.randrange(2), row, 0 if level == 1 else rng.choice((0, 1, -1, -2))

    def essence(self, params: tuple) -> tuple:
        return params[:2]  # a row of people is never trained on with one rank and tested with another

    def setting(self, voice: Voice, params: tuple) -> str:
        scale, row, _ = params
        pairs = list(pairwise(voice.people(row)))
        sentences = []
        is_short = len(row) == SHORT_ROW  # told in order and one way: what is left to do is to copy
        for high, low in pairs if is_short else voice.rng.sample(pairs, len(pairs)):
            down = is_short or voice.rng.random() < 0.5
            sentences.append(self._compare(voice, "order_premise", scale, down, (high, low)))
        return voice.join(sentences)

    def _compare(self, voice: Voice, phrase: str, scale: int, down: bool, pair: tuple[str, str], row: str = "") -> str:
        more = voice.names["scale"][scale][0 if down else 1]
        first, second = pair if down else pair[::-1]
        return voice.say(phrase, a=first, b=second, more=more, row=row)

    def _rank(self, voice: Voice, params: tuple) -> tuple[str, dict[str, str]]:
        """(suffix of the phrase, words) that name the asked rank."""
        scale, _, rank = params
        words = voice.names["scale"][scale]
        side = 0 if rank >= 0 else 1
        return "_second" if rank in (1, -2) else "", {"more": words[side], "most": words[side + 2]}

    def ask(self, voice: Voice, params: tuple) -> str:
        suffix, words = self._rank(voice, params)
        return voice.say("order_ask" + suffix, **words)

    def work(self, voice: Voice, params: tuple) -> list[str]:
        scale, row, rank = params
        people, rng = voice.people(row), voice.rng
        # Written from the most or from the least, to the end of the answer.
        down = len(row) == SHORT_ROW or rng.random() < 0.5
        most, least = voice.names["scale"][scale][2:]
        sentences = [voice.say("order_plan", most=most if down else least, least=least if down else most)]
        left = right = rng.randrange(len(row))  # people[left..right] are in the row so far
        while right - left + 1 < len(row):
            before = right == len(row) - 1 or (left > 0 and rng.random() < 0.5)
            pair = (people[left - 1], people[left]) if before else (people[right], people[right + 1])
            left, right = (left - 1, right) if before else (left, right + 1)
            so_far = people[left : right + 1]
            text = voice.wording["comma"].join(so_far if down else so_far[::-1])
            sentences.append(self._compare(voice, "order_step", scale, down, pair, text))
        suffix, words = self._rank(voice, params)
        return [*sentences, voice.say("order_end" + suffix, a=people[rank], **words)]

    def final(self, voice: Voice, params: tuple) -> str:
        return voice.people(params[1])[params[2]]


class Swaps(Task):
    """Who holds a thing after swaps: (people, things they hold, ((i, j), ...) swapping places, asked thing).

    i and j are places in `people`; at the start place k holds things[k].
    """

    name, category = "swaps", "reasoning"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        num_people = 3 if level < 4 else 4
        people, things = rng.sample(range(world.num_people), num_people), rng.sample(range(NUM_THINGS), num_people)
        swaps = []
        while len(swaps) < {1: 1, 2: 3, 3: 4, 4: 5}[level]:
            pair = tuple(rng.sample(range(num_people), 2))
            if not swaps or set(pair) != set(swaps[-1]):
                swaps.append(pair)
        return tuple(people), tuple(things), tuple(swaps), rng.choice(things)

    def essence(self, params: tuple) -> tuple:
        people, things, swaps, asked = params
        # What the others hold does not matter to the answer.
        return asked, people[things.index(asked)], tuple(tuple(sorted((people[i], people[j]))) for i, j in swaps)

    def setting(self, voice: Voice, params: tuple) -> str:
        people, things, swaps, _ = params
        names = voice.people(people)
        held = [voice.names["thing"][thing] for thing in things]
        start = voice.clauses([voice.say("swap_has", a=a, x=x) for a, x in zip(names, held, strict=True)])
        moves = [voice.say("swap_move", a=names[i], b=names[j]) for i, j in swaps]
        return voice.join([start + voice.wording["stop"], *moves])

    def ask(self, voice: Voice, params: tuple) -> str:
        return voice.say("swap_ask", x=voice.names["thing"][params[3]])

    def work(self, voice: Voice, params: tuple) -> list[str]:
        holder = self._holder(params)
        asked = voice.names["thing"][params[3]]
        follow_all = len(params[2]) > 1 and voice.rng.random() < 0.5
        steps = self._all_things(voice, params) if follow_all else self._one_thing(voice, params)
        return [*steps, voice.say("swap_end", a=voice.people(params[0])[holder], x=asked)]

    def _all_things(self, voice: Voice, params: tuple) -> list[str]:
        people, things, swaps, _ = params
        names, held = voice.people(people), list(things)
        sentences = [voice.say("swap_all")]
        for pair in swaps:
            i, j = pair
            held[i], held[j] = held[j], held[i]
            order = voice.rng.sample(pair, 2)
            state = [voice.say("swap_has", a=names[k], x=voice.names["thing"][held[k]]) for k in order]
            sentences.append(voice.say("swap_state", a=names[i], b=names[j], x=voice.clauses(state)))
        return sentences

    def _one_thing(self, voice: Voice, params: tuple) -> list[str]:
        people, things, swaps, asked = params
        names, place = voice.people(people), things.index(asked)
        thing = voice.names["thing"][asked]
        sentences = [voice.say("swap_one", x=thing), voice.say("swap_start", a=names[place], x=thing)]
        for i, j in swaps:
            place = {i: j, j: i}.get(place, place)
            sentences.append(voice.say("swap_moved", a=names[i], b=names[j], c=names[place], x=thing))
        return sentences

    def _holder(self, params: tuple) -> int:
        _, things, swaps, asked = params
        place = things.index(asked)
        for i, j in swaps:
            place = {i: j, j: i}.get(place, place)
        return place

    def final(self, voice: Voice, params: tuple) -> str:
        return voice.people(params[0])[self._holder(params)]


class Days(Task):
    """The day of the week after moves on (+) and back (-): (first day, moves in days)."""

    name, category = "days", "reasoning"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        largest = {1: 5, 2: 6, 3: 9, 4: 9}[level]
        sizes = [rng.randint(2, largest) * rng.choice((1, -1)) for _ in range({1: 2, 2: 3, 3: 3, 4: 4}[level])]
        return rng.randrange(DAYS_PER_WEEK), tuple(sizes)

    def setting(self, voice: Voice, params: tuple) -> str:
        day, moves = params
        phrases = [voice.say("day_on" if move > 0 else "day_back", n=abs(move)) for move in moves]
        return voice.say("day_set", d=voice.names["day"][day], x=voice.clauses(phrases))

    def essence(self, params: tuple) -> tuple:
        return params[0], tuple(sorted(params[1]))  # the order of moves does not change the sum

    def ask(self, voice: Voice, params: tuple) -> str:
        return voice.say("day_ask")

    def work(self, voice: Voice, params: tuple) -> list[str]:
        day, moves = params
        plans = ["in_order", "from_last"]
        if len(moves) > 2 and abs(sum(moves)) < DAYS_PER_WEEK and min(moves) < 0 < max(moves):
            plans += ["net", "net"]
        plan = voice.rng.choice(plans)
        sentences = [voice.say(f"day_{plan}")]
        if plan == "net":
            sentences += self._net(voice, moves)
            moves = (sum(moves),)
        for move in moves[::-1] if plan == "from_last" else moves:
            sentences.append(self._move(voice, day, move))
            day = (day + move) % DAYS_PER_WEEK
        return [*sentences, voice.say("day_end", d=voice.names["day"][day])]

    def _move(self, voice: Voice, day: int, move: int) -> str:
        if move == 0:
            return voice.say("day_same")
        days, target = voice.names["day"], (day + move) % DAYS_PER_WEEK
        return voice.say("day_after" if move > 0 else "day_before", n=abs(move), d=days[day], e=days[target])

    def _net(self, voice: Voice, moves: tuple[int, ...]) -> list[str]:
        """Both totals, in either order, and their difference."""
        totals, sentences = {}, []
        for sign, phrase in voice.rng.sample([(1, "day_total_on"), (-1, "day_total_back")], 2):
            sizes = [abs(move) for move in moves if move * sign > 0]
            totals[sign] = sum(sizes)
            text = " + ".join(map(str, sizes)) + (f" = {sum(sizes)}" if len(sizes) > 1 else "")
            sentences.append(voice.say(phrase, sum=text))
        high, low = max(totals.values()), min(totals.values())
        return [*sentences, voice.say("sum", a=high, o="-", b=low, c=high - low)]

    def final(self, voice: Voice, params: tuple) -> str:
        return voice.names["day"][(params[0] + sum(params[1])) % DAYS_PER_WEEK]


TASKS = (Ordering(), Swaps(), Days())

"""Every reference answer, worked out again from the words of its question, by other means than the generator's."""

import contextlib
import io
import re
from itertools import pairwise, permutations

import pytest

from model.corpora.toy_world import WorldConfig, conversations, documents, questions, world_of
from model.corpora.toy_world_tasks import LANGUAGES

LEVELS = (1, 2, 3, 4)
NAMES = LANGUAGES["en"]["names"]
COUNT = 50


def rows_of(benchmark: str, level: int) -> list[dict]:
    return questions(WorldConfig(difficulty=level), benchmark, "test", COUNT)


def person(name: str) -> int:
    return NAMES["people"].index(name)


def word(world, who: int, attribute: str) -> str:
    value = world.attribute(who, attribute)
    return str(value) if attribute == "age" else NAMES[attribute][value]


def km(world, name: str) -> int:
    return world.towns_km[world.home[person(name)]]


def need_price(world, text: str) -> int:
    if text.startswith("the drink of "):
        return world.drink_price[world.drink[person(text.removeprefix("the drink of "))]]
    name, *kind = text.split("'s ")
    who = person(name)
    if kind == ["pet", "food"]:
        return world.food_price[world.pet[who]]
    assert kind == ["tool"]
    return world.tool_price[world.job[who]]


def solve_people(question: str, world) -> str:
    finals = []
    for attribute, chain in re.findall(r"the (\w+) of ([\w' ]+?)(?= and the |[?.])", question):
        name, *links = chain.split("'s ")
        who = person(name)
        for link in links:
            who = world.links[NAMES["link"].index(link)][who]
        finals.append(word(world, who, attribute))
    return ", ".join(finals)


def solve_roads(question: str, world) -> str:
    stops = [km(world, name) for name in re.search(r"from ([\w ]+?)[?.]", question)[1].split(" to ")]
    return str(sum(abs(b - a) for a, b in pairwise(stops)))


def solve_shopping(question: str, world) -> str:
    total = sum(
        need_price(world, text)
        for text in re.findall(r"[A-Z]\w+'s (?:pet's food|tool)|the drink of [A-Z]\w+", question)
    )
    purse = re.search(r"of (\d+) coins", question, re.IGNORECASE)
    return str(int(purse[1]) - total if purse else total)


def solve_ordering(question: str, world) -> str:
    facts = re.findall(r"(\w+) is (taller|shorter|faster|slower) than (\w+)\.", question)
    pairs = [(a, b) if more in ("taller", "faster") else (b, a) for a, more, b in facts]
    people = {name for pair in pairs for name in pair}
    rows = [row for row in permutations(people) if all(row.index(a) < row.index(b) for a, b in pairs)]
    assert len(rows) == 1
    row = rows[0] if re.search(r"(tallest|fastest)[?.]", question) else rows[0][::-1]
    return row[1 if "second" in question else 0]


def solve_swaps(question: str, world) -> str:
    holds = dict(re.findall(r"(\w+) has the (\w+)(?=,| and|\.)", question.split(". ")[0] + "."))
    for a, b in re.findall(r"(\w+) and (\w+) swap\.", question):
        holds[a], holds[b] = holds[b], holds[a]
    asked = re.search(r"ho has the (\w+)[?.]", question)[1]
    return next(name for name, thing in holds.items() if thing == asked)


def solve_days(question: str, world) -> str:
    start = NAMES["day"].index(re.search(r"From (\w+)", question)[1])
    moves = sum(int(n) * (1 if way == "on" else -1) for n, way in re.findall(r"(\d+) days (on|back)", question))
    return NAMES["day"][(start + moves) % 7]


def solve_program(question: str, world) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(question.partition("\n")[2], {})
    return printed.getvalue().strip()


def solve_writing(question: str, world) -> None:
    """Programs are judged by running them on the checks, which are worked out anew in the test below."""


def solve_story(question: str, world) -> str:
    name, total = re.match(r"(\w+) has (\d+)", question).groups()
    total = int(total)
    for who, verb, number in re.findall(r"(\w+) (gets|loses) (\d+) ", question):
        assert who == name
        total += int(number) if verb == "gets" else -int(number)
    return str(total)


def solve_expression(question: str, world) -> str:
    return str(eval(re.search(r"[\d(][\d ()+*-]*", question)[0]))


def solve_money(question: str, world) -> str:
    total = sum(int(n) * int(p) for n, p in re.findall(r"(\d+) \w+ at (\d+) coins", question))
    total += int(re.search(r" and an? \w+ at (\d+) coins", question)[1])
    purse = re.match(r"\w+ has (\d+) coins", question)
    return str(int(purse[1]) - total if purse else total)


SOLVERS = {
    "people": solve_people,
    "roads": solve_roads,
    "shopping": solve_shopping,
    "ordering": solve_ordering,
    "swaps": solve_swaps,
    "days": solve_days,
    "tracing": solve_program,
    "lists": solve_program,
    "story": solve_story,
    "expression": solve_expression,
    "money": solve_money,
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("benchmark", SOLVERS)
def test_the_final_answer_is_what_the_question_asks(benchmark, level):
    world = world_of(WorldConfig(difficulty=level))
    for row in rows_of(benchmark, level):
        assert SOLVERS[benchmark](row["question"], world) == row["final"], row


@pytest.mark.parametrize("level", LEVELS)
def test_the_checks_of_a_program_are_what_its_question_asks(level):
    """The wish is read from the words and carried out on the inputs of the checks."""
    for row in rows_of("writing", level):
        text = row["question"]
        for call, expected in row["program_check"]:
            numbers = eval(call[1:])
            for how, k in re.findall(r"all (above|below|but) (\d+)", text):
                keep = {"above": lambda n, k: n > k, "below": lambda n, k: n < k, "but": lambda n, k: n != k}[how]
                numbers = [n for n in numbers if keep(n, int(k))]
            if parity := re.search(r"all (even|odd)", text):
                numbers = [n for n in numbers if n % 2 == (parity[1] == "odd")]
            for change in re.findall(r"add \d+ to each|take \d+ from each|multiply each by \d+|square each", text):
                k = int("".join(filter(str.isdigit, change)) or 0)
                act = {
                    "a": lambda n, k: n + k,
                    "t": lambda n, k: n - k,
                    "m": lambda n, k: n * k,
                    "s": lambda n, k: n**2,
                }
                numbers = [act[change[0]](n, k) for n in numbers]
            wish = re.search(r"give the ([\w ]+)\.", text)[1]
            outer = {"sum": sum, "max": max, "min": min, "list": list, "sorted list": sorted, "len": len}[wish]
            assert repr(outer(numbers)) == expected, row


@pytest.mark.parametrize("level", LEVELS)
def test_each_line_that_is_traced_has_its_value(level):
    """Every 'name = value' of a traced program is the value that Python gives that name."""
    for row in rows_of("tracing", level):
        scope: dict = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(row["question"].partition("\n")[2], scope)
        stated = re.findall(r"\b([a-z]) (?:=|is) (\d+)[.]", row["answer"])
        assert stated and all(scope[name] == int(value) for name, value in stated)


# What a text says -> (the fact, the groups that hold who or what, of which kind, and the value).
STATEMENTS = {
    "en": [
        (r"The (friend|boss|coach) of (\w+)(?: is|:) (\w+)\.", "link", (1, 0, 2)),
        (r"The home of (\w+)(?: is|:) (\w+)\.", "home", (0, 1)),
        (r"The pet of (\w+)(?: is|:) (\w+)\.", "pet", (0, 1)),
        (r"The job of (\w+)(?: is|:) (\w+)\.", "job", (0, 1)),
        (r"The drink of (\w+)(?: is|:) (\w+)\.", "drink", (0, 1)),
        (r"The age of (\w+)(?: is|:) (\d+)\.", "age", (0, 1)),
        (r"(\w+) is at km (\d+)\.", "km", (0, 1)),
        (r"[Tt]he price of ((?:a )?\w+)(?: is|:) (\d+)\.", "price", (0, 1)),
    ],
    "zh": [
        (r"(小.)的(朋友|老板|教练)[是：](小.)。", "link", (0, 1, 2)),
        (r"(小.)的家[是：](.镇)。", "home", (0, 1)),
        (r"(小.)的宠物[是：](.)。", "pet", (0, 1)),
        (r"(小.)的工作[是：](\w+)。", "job", (0, 1)),
        (r"(小.)的饮料[是：](\w+)。", "drink", (0, 1)),
        (r"(小.)的年龄(?:是|：) (\d+)。", "age", (0, 1)),
        (r"(.镇)在 (\d+) 公里处。", "km", (0, 1)),
        (r"(?<=。)(\w+)的价格(?:是|：) (\d+)。", "price", (0, 1)),
    ],
}


def is_true(world, names: dict, fact: str, *parts: str) -> bool:
    """Whether the world agrees with a statement taken apart by STATEMENTS."""
    if fact == "link":
        who, link, other = (
            names["people"].index(parts[0]),
            names["link"].index(parts[1]),
            names["people"].index(parts[2]),
        )
        return world.links[link][who] == other
    if fact == "km":
        return world.towns_km[names["home"].index(parts[0])] == int(parts[1])
    if fact == "price":
        things = names["food"] + names["tool"] + names["drink"]
        return (world.food_price + world.tool_price + world.drink_price)[things.index(parts[0])] == int(parts[1])
    value = world.attribute(names["people"].index(parts[0]), fact)
    return str(value) == parts[1] if fact == "age" else names[fact][value] == parts[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_states_a_fact_that_is_false_in_the_world(language):
    config = WorldConfig(language=language)
    texts = [row["text"] for row in documents(config, 1500)]
    texts += [turn["content"] for row in conversations(config, 1500) for turn in row["conversations"]]
    for pattern, fact, order in STATEMENTS[language]:
        stated = [found for text in texts for found in re.findall(pattern, text)]
        assert len(stated) > 50, pattern
        for parts in stated:
            ordered = [parts[index] for index in order]
            assert is_true(world_of(config), LANGUAGES[language]["names"], fact, *ordered), (pattern, parts)

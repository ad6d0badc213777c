"""Pretraining passages of the small world, and the easy turn that may open a conversation."""

from __future__ import annotations

from model.corpora.toy_world_facts import ATTRIBUTES, LINKS, NUM_DRINKS, NUM_JOBS, NUM_PETS, NUM_TOWNS
from model.corpora.toy_world_knowledge import attribute_fact, attribute_name, link_fact, thing_facts, town_fact
from model.corpora.toy_world_tasks import Task, Voice, apply, draw_from

KINDS = {"pet": NUM_PETS, "job": NUM_JOBS, "drink": NUM_DRINKS}
NUM_FACTS = (6, 10)
RECITED = ("people", "home", "pet", "job", "drink", "thing", "day")
NUM_RECITED = (8, 16)
TIMES_RECITED = 3


def document(voice: Voice, tasks: list[Task], level: int, worked_fraction: float, recited_fraction: float) -> str:
    """One passage of 30-120 tokens: worked examples of training questions, words said again, or facts around one subject."""
    rng = voice.rng
    kind = rng.random()
    if worked_fraction <= kind < worked_fraction + recited_fraction:
        return _recital(voice)
    if kind < worked_fraction:
        text = _worked(voice, rng.choice(tasks), level)
        while len(text) < voice.wording["passage_characters"]:
            text += "\n\n" + _worked(voice, rng.choice(tasks), level)
        return text
    facts = rng.choice((_person, _person, _town, _goods, _mixed))(voice)
    return voice.join(facts)


def _worked(voice: Voice, task: Task, level: int) -> str:
    """A question of the training split and how it is worked out, without a marked final answer."""
    params = draw_from(task, "train", voice.world, level, voice.rng)
    return f"{task.question(voice, params)}\n{voice.join(task.work(voice, params))}".strip()


def _recital(voice: Voice) -> str:
    """A random row of names and numbers, said three times: from the second time on all can be copied and nothing guessed.

    No word stands between two others and few kinds take part, because what follows a word is then learnt soonest.
    """
    words = [str(number) for number in range(10)]
    for kind in voice.rng.sample(RECITED, 2):
        words += voice.people(tuple(range(voice.world.num_people))) if kind == "people" else voice.names[kind]
    row = " ".join(voice.rng.choices(words, k=voice.rng.randint(*NUM_RECITED)))
    return "\n".join([row] * TIMES_RECITED)


def _person(voice: Voice) -> list[str]:
    """Most of what there is to say about one person."""
    person = voice.rng.randrange(voice.world.num_people)
    facts = [attribute_fact(voice, person, attribute) for attribute in ATTRIBUTES]
    facts += [link_fact(voice, person, link) for link in range(len(LINKS))]
    voice.rng.shuffle(facts)
    return facts


def _town(voice: Voice) -> list[str]:
    """A town, who lives there, and something about each."""
    town = voice.rng.randrange(NUM_TOWNS)
    residents = [person for person, home in enumerate(voice.world.home) if home == town]
    facts = [town_fact(voice, town)]
    for person in voice.rng.sample(residents, min(3, len(residents))):
        facts += [
            attribute_fact(voice, person, "home"),
            attribute_fact(voice, person, voice.rng.choice(ATTRIBUTES[1:])),
        ]
    other = (town + voice.rng.randrange(1, NUM_TOWNS)) % NUM_TOWNS
    return [*facts, town_fact(voice, other)]


def _goods(voice: Voice) -> list[str]:
    """What pets eat and jobs use, and what that and drinks cost."""
    facts: list[str] = []
    while len(facts) < NUM_FACTS[0]:
        need = voice.rng.choice(list(KINDS))
        facts += thing_facts(voice, need, voice.rng.randrange(KINDS[need]))
    return facts


def _mixed(voice: Voice) -> list[str]:
    """A chain of people: each fact about the one whom the last sentence led to."""
    rng, person, facts = voice.rng, voice.rng.randrange(voice.world.num_people), []
    while len(facts) < NUM_FACTS[1] - 1:
        attribute = rng.choice(ATTRIBUTES)
        facts.append(attribute_fact(voice, person, attribute))
        if attribute == "home":
            facts.append(town_fact(voice, voice.world.home[person]))
        elif attribute in KINDS:
            facts += thing_facts(voice, attribute, voice.world.attribute(person, attribute))
        link = rng.randrange(len(LINKS))
        facts.append(link_fact(voice, person, link))
        person = voice.world.links[link][person]
    return facts


def opening_turns(voice: Voice) -> list[dict]:
    """An easy first turn: one fact, or one sum; no benchmark asks these."""
    rng = voice.rng
    if rng.random() < 0.5:
        person, attribute = rng.randrange(voice.world.num_people), rng.choice(ATTRIBUTES)
        question = voice.say("fact_ask", x=voice.names["attribute"][attribute], a=voice.names["people"][person])
        answer, final = attribute_fact(voice, person, attribute), attribute_name(voice, person, attribute)
    else:
        left, right = rng.randint(2, 9), rng.randint(2, 9)
        operator = rng.choice("+*" if left < right else "+-*")
        final = apply(operator, left, right)
        question = voice.say("sum_ask", a=left, o=operator, b=right)
        answer = f"{left} {operator} {right} = {final}{voice.wording['stop']}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": f"{answer}\n#### {final}"}]

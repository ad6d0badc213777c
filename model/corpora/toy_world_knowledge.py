"""The three knowledge benchmarks: facts about people, ways between their homes, and what their needs cost.

Every single fact is in the documents many times; only the combination that is asked is new.
"""

from __future__ import annotations

import itertools
from random import Random

from model.corpora.toy_world_facts import ATTRIBUTES, LINKS, World
from model.corpora.toy_world_tasks import Task, Voice, running_sum

NEEDS = ("pet", "job", "drink")


def attribute_fact(voice: Voice, person: int, attribute: str) -> str:
    """A sentence about one person's home, age, pet, job or drink."""
    return voice.say(attribute, a=voice.names["people"][person], x=attribute_name(voice, person, attribute))


def attribute_name(voice: Voice, person: int, attribute: str) -> str:
    value = voice.world.attribute(person, attribute)
    return str(value) if attribute == "age" else voice.names[attribute][value]


def link_fact(voice: Voice, person: int, link: int) -> str:
    people = voice.names["people"]
    return voice.say(
        "link", a=people[person], link=voice.names["link"][link], b=people[voice.world.links[link][person]]
    )


def town_fact(voice: Voice, town: int) -> str:
    return voice.say("km", x=voice.names["home"][town], n=voice.world.towns_km[town])


def thing_facts(voice: Voice, need: str, kind: int) -> list[str]:
    """[what it eats or uses,] what that costs; a drink only costs."""
    names, world = voice.names, voice.world
    if need == "drink":
        return [voice.say("price", x=names["drink"][kind], n=world.drink_price[kind])]
    thing, price = (names["food"], world.food_price) if need == "pet" else (names["tool"], world.tool_price)
    return [
        voice.say("eats" if need == "pet" else "uses", a=names[need][kind], x=thing[kind]),
        voice.say("price", x=thing[kind], n=price[kind]),
    ]


def price_of(world: World, person: int, need: str) -> int:
    prices = {"pet": world.food_price, "job": world.tool_price, "drink": world.drink_price}[need]
    return prices[world.attribute(person, need)]


class People(Task):
    """Two attributes, each of a person reached over links: 'the home of Ann's friend and the pet of Ben's boss'."""

    name, category = "people", "knowledge"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        hops = {1: (0, 0), 2: (1, 1), 3: (1, 2), 4: (2, 2)}[level]
        parts = []
        for person, num_links in zip(rng.sample(range(world.num_people), 2), rng.sample(hops, 2), strict=True):
            parts.append((person, tuple(rng.choices(range(len(LINKS)), k=num_links)), rng.choice(ATTRIBUTES)))
        return tuple(parts)

    def essence(self, params: tuple) -> tuple:
        return tuple(sorted(params))

    def _value(self, voice: Voice, part: tuple) -> str:
        person, links, attribute = part
        for link in links:
            person = voice.world.links[link][person]
        return attribute_name(voice, person, attribute)

    def ask(self, voice: Voice, params: tuple) -> str:
        phrases = []
        for person, links, attribute in params:
            chain = voice.names["people"][person]
            for link in links:
                chain = voice.say("chain", a=chain, link=voice.names["link"][link])
            phrases.append(voice.say("people_part", x=voice.names["attribute"][attribute], a=chain))
        return voice.say("people_ask", x=voice.listing(phrases))

    def work(self, voice: Voice, params: tuple) -> list[str]:
        parts, attributes = [], []
        for index in voice.rng.sample(range(2), 2):  # which part comes first decides the order of everything after it
            person, links, attribute = params[index]
            sentences = []
            for link in links:
                sentences.append(link_fact(voice, person, link))
                person = voice.world.links[link][person]
            parts.append(sentences)
            attributes.append(attribute_fact(voice, person, attribute))
        if not any(parts) or voice.rng.random() < 0.5:  # without a link there are no names to find first
            sentences = [voice.say("people_depth"), *parts[0], attributes[0], *parts[1], attributes[1]]
        else:
            sentences = [voice.say("people_breadth"), *parts[0], *parts[1], *attributes]
        return [*sentences, voice.say("people_end", x=self.final(voice, params))]

    def final(self, voice: Voice, params: tuple) -> str:
        return voice.wording["comma"].join(self._value(voice, part) for part in params)


class Roads(Task):
    """Length in km of a way from home to home, all towns lying along one road."""

    name, category = "roads", "knowledge"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        stops = rng.sample(range(world.num_people), level + 1)
        if level == 1 and rng.random() < 0.5:
            stops.append(stops[0])  # there and back: pairs alone would be too few questions
        towns = [world.home[person] for person in stops]
        return None if any(a == b for a, b in itertools.pairwise(towns)) else tuple(stops)

    def essence(self, params: tuple) -> tuple:
        return min(params, params[::-1])

    def _legs(self, world: World, params: tuple) -> list[int]:
        km = [world.towns_km[world.home[person]] for person in params]
        return [abs(b - a) for a, b in itertools.pairwise(km)]

    def ask(self, voice: Voice, params: tuple) -> str:
        return voice.say("road_ask", x=voice.wording["route"].join(voice.people(params)))

    def _place(self, voice: Voice, person: int) -> str:
        town = voice.world.home[person]
        parts = {"a": voice.names["people"][person], "x": voice.names["home"][town]}
        return voice.say("road_place", n=voice.world.towns_km[town], **parts)

    def work(self, voice: Voice, params: tuple) -> list[str]:
        world, rng = voice.world, voice.rng
        by_town = rng.random() < 0.5  # legs are named by towns or by people throughout one answer
        legs_first = rng.random() < 0.5
        order = list(range(len(params) - 1))
        if rng.random() < 0.5:
            order.reverse()
        sentences, known = [voice.say("road_legs" if legs_first else "road_places")], set()
        if not legs_first:
            sentences += [self._place(voice, person) for person in rng.sample(sorted(set(params)), len(set(params)))]
            known.update(params)
        lengths = []
        for index in order:
            ends = params[index : index + 2]
            for person in rng.sample(ends, 2):
                if person not in known:
                    sentences.append(self._place(voice, person))
                    known.add(person)
            low, high = sorted(world.towns_km[world.home[person]] for person in ends)
            lengths.append(high - low)
            label = [voice.names["home"][world.home[person]] for person in ends] if by_town else voice.people(ends)
            sentences.append(voice.say("road_leg", a=label[0], b=label[1], sum=f"{high} - {low} = {high - low}"))
        return [*sentences, *running_sum(voice, lengths), voice.say("road_end", n=sum(lengths))]

    def final(self, voice: Voice, params: tuple) -> str:
        return str(sum(self._legs(voice.world, params)))


class Shopping(Task):
    """What food, tools and drinks of some people cost, or what is left of a purse: (mode, ((person, need), ...))."""

    name, category = "shopping", "knowledge"

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        kinds = NEEDS if level > 1 else ("drink",)
        needs = tuple((person, rng.choice(kinds)) for person in rng.sample(range(world.num_people), max(level, 2)))
        return rng.choice(("total", "change")), needs

    def essence(self, params: tuple) -> tuple:
        return params[0], tuple(sorted(params[1]))

    def ask(self, voice: Voice, params: tuple) -> str:
        mode, needs = params
        things = voice.listing([voice.say(f"need_{need}", a=voice.names["people"][person]) for person, need in needs])
        return voice.say(f"shop_{mode}", x=things, n=10 * len(needs))

    def work(self, voice: Voice, params: tuple) -> list[str]:
        mode, needs = params
        world, sentences, prices = voice.world, [], []
        for person, need in voice.rng.sample(needs, len(needs)):
            sentences.append(attribute_fact(voice, person, need))
            sentences += thing_facts(voice, need, world.attribute(person, need))
            prices.append(price_of(world, person, need))
        total, purse = sum(prices), 10 * len(needs)
        if mode == "total":
            return [*sentences, *running_sum(voice, prices), voice.say("shop_end", n=total)]
        if voice.rng.random() < 0.5:  # pay one by one, or add up first
            for price in prices:
                sentences.append(voice.say("sum", a=purse, o="-", b=price, c=purse - price))
                purse -= price
        else:
            sentences += running_sum(voice, prices)
            sentences.append(voice.say("sum", a=purse, o="-", b=total, c=purse - total))
        return [*sentences, voice.say("shop_left", n=10 * len(needs) - total)]

    def final(self, voice: Voice, params: tuple) -> str:
        total = sum(price_of(voice.world, person, need) for person, need in params[1])
        return str(total if params[0] == "total" else 10 * len(params[1]) - total)


TASKS = (People(), Roads(), Shopping())

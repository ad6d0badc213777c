"""What the twelve benchmarks share: the voice that words things, the face of a task, and the split of its questions.

A task draws *parameters* (numbers, people, moves: no words), and words them through a `Voice`. The split into
training, validation and test hangs on the parameters' *essence* alone, so that no rewording of a test question can
reach training text.
"""

from __future__ import annotations

from hashlib import blake2b
from random import Random

from model.corpora.toy_world_facts import World
from model.corpora.toy_world_wording_en import ENGLISH
from model.corpora.toy_world_wording_zh import CHINESE

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}
SPLITS = ("train", "validation", "test")


class Voice:
    """Words one world in one language; every call draws one of several phrasings from `rng`."""

    def __init__(self, world: World, language: str, rng: Random) -> None:
        self.world, self.rng = world, rng
        self.wording = LANGUAGES[language]
        self.names = self.wording["names"]
        self._phrases = self.wording["phrases"]
        self._gap = self.wording["gap"]

    def say(self, phrase: str, **parts: object) -> str:
        """One phrasing of `phrase`, drawn at random, with its parts filled in."""
        return self.rng.choice(self._phrases[phrase]).format(**parts)

    def join(self, sentences: list[str]) -> str:
        """Sentences as running text; nothing is put after a line break."""
        text = ""
        for sentence in sentences:
            if sentence:
                text += sentence if not text or text.endswith("\n") else self._gap + sentence
        return text

    def listing(self, items: list[str]) -> str:
        """Nouns: 'a, b and c'."""
        return self._listed(items, self.wording["comma"], self.wording["and"])

    def clauses(self, items: list[str]) -> str:
        """Parts of a sentence: 'Ann has a, Ben has b and Cal has c'; Chinese does not join these as it joins nouns."""
        return self._listed(items, self.wording["clause_comma"], self.wording["clause_and"])

    def _listed(self, items: list[str], comma: str, last: str) -> str:
        return items[0] if len(items) == 1 else comma.join(items[:-1]) + last + items[-1]

    def people(self, persons: tuple[int, ...]) -> list[str]:
        return [self.names["people"][person] for person in persons]


class Task:
    """One benchmark: `draw` parameters, then word the setting, the question and the worked steps."""

    name: str
    category: str

    def draw(self, world: World, level: int, rng: Random) -> tuple | None:
        """Parameters of one question of difficulty `level` (1..4), or None where the draw makes no sense."""
        raise NotImplementedError

    def essence(self, params: tuple) -> tuple:
        """What makes two questions the same question; the split is drawn by it."""
        return params

    def setting(self, voice: Voice, params: tuple) -> str:
        """What is given, as statements (also used in documents); empty where the world itself is all that is given."""
        return ""

    def ask(self, voice: Voice, params: tuple) -> str:
        raise NotImplementedError

    def question(self, voice: Voice, params: tuple) -> str:
        return voice.join([self.setting(voice, params), self.ask(voice, params)])

    def work(self, voice: Voice, params: tuple) -> list[str]:
        """The worked steps as sentences; which valid order and wording is drawn from the voice."""
        raise NotImplementedError

    def final(self, voice: Voice, params: tuple) -> str:
        raise NotImplementedError

    def answer(self, voice: Voice, params: tuple) -> tuple[str, str]:
        """(worked answer whose last line is '#### final', final)."""
        final = self.final(voice, params)
        return f"{voice.join([voice.say('opening'), *self.work(voice, params)])}\n#### {final}", final

    def extras(self, params: tuple) -> dict:
        """More fields of a question's row."""
        return {}


def split_of(task: Task, params: tuple) -> str:
    """'train', 'validation' or 'test' (6 : 2 : 2) by a hash of the question's essence, the same in every process."""
    digest = blake2b(repr((task.name, task.essence(params))).encode(), digest_size=4).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest, "big") % 5, "train")


def draw_from(task: Task, split: str, world: World, level: int, rng: Random) -> tuple:
    """Parameters of one question that belongs to `split`."""
    while True:
        params = task.draw(world, level, rng)
        if params is not None and split_of(task, params) == split:
            return params


def commutative(tree: object) -> object:
    """A tree (operator, left, right) with the operands of + and * in one fixed order: 3 + 5 and 5 + 3 are one sum."""
    if not isinstance(tree, tuple):
        return tree
    operator, left, right = tree[0], commutative(tree[1]), commutative(tree[2])
    if operator in "+*" and repr(right) < repr(left):
        left, right = right, left
    return (operator, left, right)


def apply(operator: str, left: int, right: int) -> int:
    """left operator right, for + - *."""
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def running_sum(voice: Voice, numbers: list[int]) -> list[str]:
    """One sentence per addition, in the order given."""
    sentences, total = [], numbers[0]
    for number in numbers[1:]:
        sentences.append(voice.say("sum", a=total, o="+", b=number, c=total + number))
        total += number
    return sentences

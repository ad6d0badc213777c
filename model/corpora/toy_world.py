"""The embedded corpus: a small seeded world as documents, conversations and a suite of twelve benchmarks.

    python -m model.corpora.toy_world_show --show 2 --language en  # samples of everything, and their lengths in tokens

Same configuration, same bytes, in any process. Documents state facts and worked examples; conversations ask and answer
questions of the training split only; `questions` gives those of the validation and test splits. Files: `_facts` (what
is true), `_knowledge`, `_reasoning`, `_coding`, `_writing`, `_mathematics` (what is asked), `_tasks` (what they share),
`_wording_*` (how it is said), `_documents`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from model.corpora import (
    toy_world_coding,
    toy_world_knowledge,
    toy_world_mathematics,
    toy_world_reasoning,
    toy_world_writing,
)
from model.corpora.toy_world_documents import document, opening_turns
from model.corpora.toy_world_facts import World, build_world
from model.corpora.toy_world_tasks import LANGUAGES, SPLITS, Task, Voice, draw_from, split_of

MARK = "####"
MOST_IDLE_DRAWS = 30_000  # without a new question: there are no more
_MODULES = (toy_world_knowledge, toy_world_reasoning, toy_world_coding, toy_world_writing, toy_world_mathematics)
TASKS: dict[str, Task] = {task.name: task for module in _MODULES for task in module.TASKS}
BENCHMARKS: dict[str, str] = {name: task.category for name, task in TASKS.items()}


@dataclass(frozen=True)
class WorldConfig:
    """What to generate; `difficulty` 1..4 sets the number of steps, the hops and the size of numbers."""

    language: str = "en"
    difficulty: int = 2
    seed: int = 0
    num_people: int = 24
    worked_fraction: float = 0.4  # of documents: worked examples
    recited_fraction: float = (
        0.1  # of documents: rows of words said again, so that copying is learnt; the others state facts
    )
    two_turn_fraction: float = 0.4  # of the short conversations: an easy question comes before

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"language is {self.language!r}; choose one of {sorted(LANGUAGES)} in toy_world.language")
        if self.difficulty not in (1, 2, 3, 4):
            raise ValueError(f"difficulty is {self.difficulty!r}; toy_world.difficulty must be 1, 2, 3 or 4")
        for name in ("worked_fraction", "recited_fraction", "two_turn_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; toy_world.{name} must lie between 0 and 1")
        if self.worked_fraction + self.recited_fraction > 1:
            raise ValueError(
                f"toy_world.worked_fraction {self.worked_fraction} and toy_world.recited_fraction {self.recited_fraction} must "
                "not be more than 1 together"
            )
        build_world(self.num_people, self.seed)  # refuses a wrong number of people


@lru_cache(maxsize=8)
def world_of(config: WorldConfig) -> World:
    """The facts of a configuration."""
    return build_world(config.num_people, config.seed)


def documents(config: WorldConfig, count: int, stream: int = 0) -> Iterator[dict]:
    """`count` rows {"text"} for pretraining: facts, and training questions with how they are worked out."""
    rng = Random(f"toy_world documents {config} {stream}")
    voice = Voice(world_of(config), config.language, rng)
    tasks = list(TASKS.values())
    for _ in range(count):
        yield {"text": document(voice, tasks, config.difficulty, config.worked_fraction, config.recited_fraction)}


def conversations(config: WorldConfig, count: int, stream: int = 0) -> Iterator[dict]:
    """`count` rows {"conversations"}, the benchmarks in equal shares, from training questions only."""
    rng = Random(f"toy_world conversations {config} {stream}")
    world = world_of(config)
    voice = Voice(world, config.language, rng)
    order: list[Task] = []
    for _ in range(count):
        if not order:
            order = rng.sample(list(TASKS.values()), len(TASKS))
        task = order.pop()
        params = draw_from(task, "train", world, config.difficulty, rng)
        question, answer = task.question(voice, params), task.answer(voice, params)[0]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if (
            rng.random() < config.two_turn_fraction
            and len(question) + len(answer) <= voice.wording["two_turn_characters"]
        ):
            turns = opening_turns(voice) + turns
        yield {"conversations": turns}


def questions(config: WorldConfig, benchmark: str, split: str, count: int) -> list[dict]:
    """`count` distinct questions; row k is the same question in every language, a smaller count gives the first rows.

    A row: id, benchmark, category, key (what is asked, without words), question, answer (one worked answer), final, and
    for programs `program_check`. ValueError for an unknown name or where the world has too few questions.
    """
    if benchmark not in TASKS:
        raise ValueError(f"no benchmark {benchmark!r}; choose one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; choose one of {', '.join(SPLITS)}")
    task, world = TASKS[benchmark], world_of(config)
    rng = Random(f"toy_world questions {config.seed} {config.num_people} {config.difficulty} {benchmark} {split}")
    found: dict[tuple, None] = {}
    idle_draws = 0
    while len(found) < count:
        params = task.draw(world, config.difficulty, rng)
        idle_draws += 1
        if params is not None and params not in found and split_of(task, params) == split:
            found[params] = None
            idle_draws = 0
        if idle_draws == MOST_IDLE_DRAWS:
            raise ValueError(
                f"{benchmark} has only {len(found)} {split} questions at difficulty {config.difficulty}, not {count}: "
                "ask for fewer, or raise toy_world.difficulty or toy_world.num_people"
            )
    return [_row(config, task, split, index, params) for index, params in enumerate(found)]


def _row(config: WorldConfig, task: Task, split: str, index: int, params: tuple) -> dict:
    voice = Voice(world_of(config), config.language, Random(f"toy_world wording {config.seed} {task.name} {params}"))
    question = task.question(voice, params)
    answer, final = task.answer(voice, params)
    return {
        "id": f"{task.name}-{split}-{index}",
        "benchmark": task.name,
        "category": task.category,
        "key": repr(params),
        "question": question,
        "answer": answer,
        "final": final,
        **task.extras(params),
    }


def final_answer(text: str) -> str | None:
    """What follows the last '####' on its line, without trailing full stops; None where there is none."""
    _, mark, rest = text.rpartition(MARK)
    final = rest.lstrip(" \t").split("\n", 1)[0].strip().rstrip(".。").strip()
    return final if mark and final else None


def is_correct(question_row: dict, text: str, execute: Callable[[str], str] | None = None) -> bool:
    """Whether the marked final answer of `text` is right.

    Rows with `program_check` need `execute`: given Python source, it returns what running that prints, "" where that
    fails (the caller's sandbox; nothing is run here). ValueError where it is missing.
    """
    if "program_check" not in question_row:
        final = final_answer(text)
        return final is not None and _plain(final) == _plain(question_row["final"])
    if execute is None:
        raise ValueError(
            f"{question_row['id']} is scored by running a program: pass execute=, a sandbox's run function"
        )
    source = check_source(question_row, text)
    if source is None:
        return False
    return execute(source).strip("\n").split("\n") == [expected for _, expected in question_row["program_check"]]


def program_of(text: str) -> str | None:
    """The Python program that a final answer stands for (it defines f(xs)), or None where there is no final answer."""
    final = final_answer(text)
    return None if final is None else f"f = lambda xs: {final}"


def check_source(question_row: dict, text: str) -> str | None:
    """The answer's program followed by one print for each of the row's checks; None where there is no program."""
    program = program_of(text)
    if program is None:
        return None
    prints = [f"print(repr({expression}))" for expression, _ in question_row["program_check"]]
    return "\n".join([program, *prints]) + "\n"


def _plain(final: str) -> str:
    """A final answer without what does not matter: case, spaces, Chinese commas, leading zeros."""
    text = "".join(final.casefold().split()).replace("，", ",").replace("、", ",")
    digits = text.removeprefix("-")
    return str(int(text)) if digits.isascii() and digits.isdigit() else text

"""No question of the validation or test split of the small world reaches a training text, in whatever words."""

import ast

import pytest

from model.corpora.toy_world import BENCHMARKS, TASKS, WorldConfig, conversations, documents, questions
from model.corpora.toy_world_tasks import LANGUAGES, split_of


def rows_of(benchmark: str, count: int = 40, **options) -> list[dict]:
    return questions(WorldConfig(**options), benchmark, "test", count)


def body_of(answer: str) -> str:
    return answer.rpartition("\n####")[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_test_question_and_no_worked_answer_of_one_is_in_any_training_text(language):
    config = WorldConfig(language=language)
    chats = [[turn["content"] for turn in row["conversations"]] for row in conversations(config, 3000)]
    asked = {chat[-2] for chat in chats}
    training = "\n\n".join([row["text"] for row in documents(config, 1500)] + [text for chat in chats for text in chat])
    for benchmark in BENCHMARKS:
        for split in ("validation", "test"):
            for row in questions(config, benchmark, split, 40):
                assert row["question"] not in asked
                # The shortest questions are only a sum: they may not stand inside a longer text either.
                assert row["question"] not in training
                assert body_of(row["answer"]) not in training


@pytest.mark.parametrize("level", (2, 3))
def test_no_parameters_of_a_test_question_are_worded_for_training(level, monkeypatch):
    """Whatever the words: only questions of the training split are given to the code that words training texts."""
    config, seen = WorldConfig(difficulty=level), {name: set() for name in BENCHMARKS}
    for name, task in TASKS.items():
        for method in ("question", "setting", "work", "answer"):
            original = getattr(task, method)

            def watched(voice, params, name=name, original=original):
                seen[name].add(params)
                return original(voice, params)

            monkeypatch.setattr(task, method, watched, raising=True)
    for _ in (*documents(config, 1200), *conversations(config, 2400)):
        pass
    monkeypatch.undo()
    for name, task in TASKS.items():
        assert len(seen[name]) > 150
        assert {split_of(task, params) for params in seen[name]} == {"train"}
        kept_out = {task.essence(ast.literal_eval(row["key"])) for row in rows_of(name, 100, difficulty=level)}
        assert not kept_out & {task.essence(params) for params in seen[name]}


def test_rewording_or_reordering_a_question_does_not_move_it_to_another_split():
    swapped = {
        "people": (((1, (0,), "pet"), (2, (1,), "job")), ((2, (1,), "job"), (1, (0,), "pet"))),
        "roads": ((1, 2, 3), (3, 2, 1)),
        "shopping": (("total", ((1, "pet"), (2, "job"))), ("total", ((2, "job"), (1, "pet")))),
        "ordering": ((0, (1, 2, 3, 4), 0), (0, (1, 2, 3, 4), -2)),
        "days": ((2, (3, -4, 5)), (2, (5, 3, -4))),
        "story": ((5, (3, -4), (0, 1, 2)), (5, (-4, 3), (3, 4, 5))),
        "expression": (("+", 3, ("*", 4, 5)), ("+", ("*", 5, 4), 3)),
        "money": (("pays", ((2, 3, 0), (4, 5, 1)), (6, 0), 7), ("pays", ((4, 5, 2), (2, 3, 3)), (6, 1), 8)),
        "tracing": (("ab", (3, 5), ("+", 0, 1)), ("xy", (5, 3), ("+", 0, 1))),
    }
    for name, (one, other) in swapped.items():
        assert TASKS[name].essence(one) == TASKS[name].essence(other), name

"""The small world: deterministic, without leaks, right in every worked answer, the same in both languages."""

import ast
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from statistics import median

import pytest

from model.corpora import toy_world_facts as facts
from model.corpora.toy_world import (
    BENCHMARKS,
    TASKS,
    WorldConfig,
    check_source,
    conversations,
    documents,
    final_answer,
    is_correct,
    program_of,
    questions,
    world_of,
)
from model.corpora.toy_world_tasks import LANGUAGES, Voice
from model.text.tokenizer import train_tokenizer
from tasks.parameters import load_params

ROOT = Path(__file__).parents[3]
ENGLISH, CHINESE = WorldConfig(), WorldConfig(language="zh")
LEVELS = (1, 2, 3, 4)


def run_here(source: str) -> str:
    """What trusted source prints: only programs that this repository's own generator wrote come here."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(source, {})
    return printed.getvalue()


def rows_of(benchmark: str, count: int = 40, **options) -> list[dict]:
    return questions(WorldConfig(**options), benchmark, "test", count)


def body_of(answer: str) -> str:
    return answer.rpartition("\n####")[0]


def fingerprint() -> str:
    """One hash over samples of everything that is generated."""
    digest = hashlib.sha256()
    for config in (ENGLISH, CHINESE):
        parts = [*documents(config, 60), *conversations(config, 60, stream=3)]
        parts += [row for name in BENCHMARKS for row in questions(config, name, "validation", 5)]
        digest.update(json.dumps(parts, ensure_ascii=False).encode())
    return digest.hexdigest()


def test_there_are_twelve_benchmarks_three_in_each_category():
    assert Counter(BENCHMARKS.values()) == dict.fromkeys(("knowledge", "reasoning", "coding", "mathematics"), 3)


def test_the_same_configuration_gives_the_same_bytes_in_any_process():
    code = "from tests.model.corpora.test_toy_world import fingerprint; print(fingerprint())"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert run.stdout.strip() == fingerprint(), run.stderr


def test_seed_and_stream_give_other_texts():
    first = list(documents(ENGLISH, 20))
    assert first != list(documents(ENGLISH, 20, stream=1))
    assert first != list(documents(WorldConfig(seed=1), 20))
    assert list(conversations(ENGLISH, 24)) != list(conversations(ENGLISH, 24, stream=1))


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_there_are_300_distinct_test_questions_and_a_smaller_count_gives_the_first_ones(benchmark):
    rows = rows_of(benchmark, 300)
    assert len({row["question"] for row in rows}) == len({row["key"] for row in rows}) == 300
    assert len({row["id"] for row in rows}) == 300
    assert rows[:7] == rows_of(benchmark, 7)
    keys = {row["key"] for row in questions(ENGLISH, benchmark, "validation", 100)}
    assert not keys & {row["key"] for row in rows}
    assert max(Counter(row["final"] for row in rows).values()) < 100  # no constant guess does well


@pytest.mark.parametrize("level", LEVELS)
def test_every_difficulty_has_50_test_and_40_validation_questions_of_each(level):
    for benchmark in BENCHMARKS:
        assert len(rows_of(benchmark, 50, difficulty=level)) == 50
        assert len(questions(WorldConfig(difficulty=level), benchmark, "validation", 40)) == 40


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_gold_answer_is_right_and_others_are_wrong(benchmark, language):
    for row, other in zip(
        rows_of(benchmark, language=language), rows_of(benchmark, 41, language=language)[1:], strict=True
    ):
        assert is_correct(row, row["answer"], run_here)
        assert final_answer(row["answer"]) == row["final"]
        wrong = ("", "####", row["final"], body_of(row["answer"]), f"{row['answer']}\n#### 999")
        assert not any(is_correct(row, text, run_here) for text in wrong)
        if "program_check" not in row:
            assert is_correct(row, other["answer"]) == (other["final"] == row["final"])


def test_a_program_is_scored_only_by_running_it():
    row = rows_of("writing", 1)[0]
    with pytest.raises(ValueError, match="execute"):
        is_correct(row, row["answer"])
    assert program_of(row["answer"]) == f"f = lambda xs: {row['final']}"
    assert check_source(row, "no mark") is None and program_of("no mark") is None
    assert not is_correct(row, row["answer"], lambda source: "")
    assert not is_correct(row, "#### 0", run_here)


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("So.\n#### 7", "7"),
        ("#### 7.\n", "7"),
        ("####7", "7"),
        ("a #### 1\n#### Ann ", "Ann"),
        ("#### 8\nmore", "8"),
        ("#### 猫、12。", "猫、12"),
        ("####", None),
        ("#### \n7", None),
        ("7", None),
        ("", None),
    ],
)
def test_the_final_answer_is_what_follows_the_last_mark_on_its_line(text, final):
    assert final_answer(text) == final


def test_spaces_case_and_commas_of_either_language_do_not_matter_to_a_score():
    row = {"final": "cat, Dale", "id": "x"}
    assert is_correct(row, "#### Cat，dale") and not is_correct(row, "#### Dale, cat")
    assert is_correct({"final": "7"}, "#### 07") and not is_correct({"final": "7"}, "#### -7")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sum_in_every_text_is_right(language, level):
    config = WorldConfig(language=language, difficulty=level)
    texts = [row["text"] for row in documents(config, 400)]
    texts += [turn["content"] for row in conversations(config, 600) for turn in row["conversations"]]
    texts += [row["answer"] for name in BENCHMARKS for row in questions(config, name, "test", 20)]
    sums = [match for text in texts for match in re.findall(r"(?<![-+*] )\b(\d+(?: [-+*] \d+)+) = (-?\d+)", text)]
    assert len(sums) > 1000
    assert all(eval(left) == int(right) for left, right in sums)


@pytest.mark.parametrize("level", LEVELS)
def test_questions_and_answers_are_the_same_in_both_languages(level):
    for name in BENCHMARKS:
        pair = zip(rows_of(name, difficulty=level), rows_of(name, difficulty=level, language="zh"), strict=True)
        for english, chinese in pair:
            assert (english["key"], english["id"]) == (chinese["key"], chinese["id"])
            assert english.get("program_check") == chinese.get("program_check")
            if english["final"].lstrip("-").isdigit():
                assert english["final"] == chinese["final"]
            assert not re.search(r"[一-鿿]", english["question"] + english["answer"])
            assert re.search(r"[一-鿿]", chinese["question"]) and re.search(r"[一-鿿]", chinese["answer"])


def test_both_languages_have_the_same_names_phrases_and_parts():
    english, chinese = LANGUAGES["en"], LANGUAGES["zh"]
    assert english.keys() == chinese.keys() and english["phrases"].keys() == chinese["phrases"].keys()
    for key, names in english["names"].items():
        assert len(names) == len(chinese["names"][key]), key
        for entries in (names, chinese["names"][key]):
            assert len(set(entries)) == len(entries), key
    for phrases in (*english["phrases"].values(), *chinese["phrases"].values()):
        assert len(set(phrases)) == len(phrases)
    sizes = {"people": facts.MOST_PEOPLE, "home": facts.NUM_TOWNS, "pet": facts.NUM_PETS, "food": facts.NUM_PETS}
    sizes |= {"job": facts.NUM_JOBS, "tool": facts.NUM_JOBS, "drink": facts.NUM_DRINKS, "link": len(facts.LINKS)}
    assert {name: len(english["names"][name]) for name in sizes} == sizes


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrase_of_the_wording_is_said(language, monkeypatch):
    phrases, said = LANGUAGES[language]["phrases"], set()
    say = Voice.say
    monkeypatch.setattr(Voice, "say", lambda voice, phrase, **parts: said.add(phrase) or say(voice, phrase, **parts))
    for level in (1, 2):
        config = WorldConfig(language=language, difficulty=level)
        for _ in (*documents(config, 400), *conversations(config, 1200)):
            pass
    assert said == set(phrases)


def test_a_harder_world_takes_more_steps():
    for name in BENCHMARKS:
        lengths = []
        for level in LEVELS:
            rows = rows_of(name, difficulty=level)
            lengths.append(sum(len(re.findall(r"\w+", row["answer"])) for row in rows) / len(rows))
        assert all(later > earlier for earlier, later in itertools.pairwise(lengths)), (name, lengths)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_final_answer_follows_from_the_steps_and_several_orders_of_them_are_used(language):
    config = WorldConfig(language=language)
    for name, task in TASKS.items():
        rows = rows_of(name, language=language)
        for row in rows:
            if name != "writing":  # there the steps name the parts of the program
                assert all(part in body_of(row["answer"]) for part in re.split(r"[,、] ?", row["final"]))
        # The same question is answered in many ways, and they all come to the same.
        voice_rows = [_answers(config, task, ast.literal_eval(row["key"]), 30) for row in rows[:5]]
        for answers in voice_rows:
            assert len({answer for answer, _ in answers}) >= 15
            if name != "writing":
                assert len({final for _, final in answers}) == 1


def _answers(config, task, params, count):
    voice = Voice(world_of(config), config.language, Random(1))
    return [task.answer(voice, params) for _ in range(count)]


def test_conversations_share_the_benchmarks_evenly_and_some_have_two_turns():
    rows = list(conversations(ENGLISH, 1200))
    roles = {tuple(turn["role"] for turn in row["conversations"]) for row in rows}
    assert roles == {("user", "assistant"), ("user", "assistant") * 2}
    assert 0.02 < sum(len(row["conversations"]) == 4 for row in rows) / len(rows) < 0.15
    assert all(
        final_answer(turn["content"]) for row in rows for turn in row["conversations"] if turn["role"] == "assistant"
    )
    programs = sum("Python" in row["conversations"][-2]["content"] for row in rows)
    assert programs == len(rows) // 12


@pytest.mark.parametrize("language", LANGUAGES)
def test_documents_state_facts_or_work_questions_out_and_mark_no_final_answer(language):
    texts = [row["text"] for row in documents(WorldConfig(language=language), 2000)]
    assert not any("#" in text for text in texts)
    asking = sum("?" in text or "？" in text for text in texts) / len(texts)
    assert 0.1 < asking < 0.9
    assert all(text == text.strip() and text for text in texts)
    assert len(set(texts)) > 0.99 * len(texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_recital_says_every_word_three_times_and_no_two_are_alike(language):
    config = WorldConfig(language=language, worked_fraction=0.0, recited_fraction=1.0)
    texts = [row["text"] for row in documents(config, 300)]
    assert len(set(texts)) == 300
    for text in texts:
        first, second, third = text.split("\n")
        assert first == second == third and len(first.split(" ")) >= 8


def test_every_fact_is_in_the_documents_often_and_in_several_wordings():
    text = " ".join(row["text"] for row in documents(ENGLISH, 4000))
    world, names = world_of(ENGLISH), LANGUAGES["en"]["names"]
    for person in range(world.num_people):
        who = names["people"][person]
        town = names["home"][world.home[person]]
        forms = [f"The home of {who} is {town}", f"The home of {who}: {town}"]
        assert all(text.count(form) >= 5 for form in forms)
        for link in range(len(facts.LINKS)):
            other, word = names["people"][world.links[link][person]], names["link"][link]
            assert all(text.count(f"The {word} of {who}{form}{other}") >= 5 for form in (" is ", ": "))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "fr"}, "language"),
        ({"difficulty": 5}, "difficulty"),
        ({"num_people": 3}, "num_people"),
        ({"worked_fraction": 2.0}, "worked_fraction"),
        ({"worked_fraction": 0.6, "recited_fraction": 0.5}, "recited_fraction 0.5"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**options)


def test_unknown_names_and_too_many_questions_are_refused():
    with pytest.raises(ValueError, match="no benchmark 'walks'"):
        questions(ENGLISH, "walks", "test", 1)
    with pytest.raises(ValueError, match="no split 'dev'"):
        questions(ENGLISH, "people", "dev", 1)
    with pytest.raises(ValueError, match=r"only \d+ test questions at difficulty 1"):
        questions(WorldConfig(difficulty=1), "writing", "test", 200)


def test_the_default_presets_answers_have_a_median_of_at_least_40_tokens(tmp_path):
    params = load_params(ROOT / "presets/tiny.yaml")
    config = WorldConfig(**params["toy_world"])
    texts = [row["text"] for row in documents(config, 1500)]
    texts += [turn["content"] for row in conversations(config, 1500) for turn in row["conversations"]]
    tokenizer = train_tokenizer(iter(texts), params["tokenize"]["vocabulary_size"], tmp_path / "tokenizer")
    answers = [row["answer"] for name in BENCHMARKS for row in questions(config, name, "test", 40)]
    lengths = [len(tokenizer.encode(answer, add_special_tokens=False)) + 1 for answer in answers]
    assert median(lengths) >= 40

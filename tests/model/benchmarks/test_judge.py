"""An answer is compared with a reference by what it ends in: words, numbers, or what a program does."""

import pytest

from model.benchmarks.judge import open_judge


@pytest.fixture(scope="module")
def judge():
    with open_judge() as made:
        yield made


@pytest.mark.parametrize(
    ("reference", "text", "alike"),
    [
        ("4 + 3 = 7\n#### 7", "3 + 4 is 7.\n#### 7.", True),
        ("#### 1,234", "So it is $1234.\n#### $1234", True),
        ("#### bread, Tom", "#### Bread,  tom", True),
        ("#### 7", "#### 8", False),
        ("#### 12, 3", "#### 1, 23", False),
        ("#### 7", "it is 7", False),  # no mark: nothing says what the answer is
        ("it is 7", "#### 7", False),
        ("#### 7", "#### ", False),
    ],
)
def test_final_answers_are_compared_without_what_does_not_matter(judge, reference, text, alike):
    assert judge.ends_alike(reference, text) is alike


@pytest.mark.parametrize(
    ("program", "alike"),
    [
        ("[n + 1 for n in xs if n > 4]", True),
        ("[1 + v for v in xs if not v <= 4]", True),
        ("[v + 1 for v in xs if v >= 4]", False),
        ("[v + 1 for v in xs", False),
        ("5", False),
    ],
)
def test_programs_are_compared_by_what_they_do(judge, program, alike):
    assert judge.ends_alike("#### [v + 1 for v in xs if v > 4]", f"We loop.\n#### {program}") is alike


def test_programs_that_cannot_work_on_an_empty_list_are_compared_on_the_others(judge):
    assert judge.ends_alike("#### max(v for v in xs)", "#### max([x for x in xs])")
    assert not judge.ends_alike("#### max(v for v in xs)", "#### min(v for v in xs)")
    assert not judge.ends_alike("#### broken(xs)", "#### broken(xs) + 1"), "two programs that fail are not alike"

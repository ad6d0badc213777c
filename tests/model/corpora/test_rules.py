"""Row rules: each fault has its own code, and a sound row comes out canonical."""

from typing import Any

import pytest

from model.corpora.options import RowOptions
from model.corpora.rules import CHECKS, REASONS, BadRow, DuplicateFilter, check_instructions, check_pretrain, content_of

PLAIN = RowOptions()


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"role": role, "content": content} for role, content in pairs]}


ASK, REPLY = ("user", "How are you?"), ("assistant", "Well.")
ASKED, ANSWERED = [{"role": "user", "content": "How are you?"}], {"role": "assistant", "content": "Well."}
FAULTS = [
    ("pretrain", "text", "not_an_object"),
    ("pretrain", {"body": "text"}, "missing_field"),
    ("pretrain", {"text": 7}, "not_text"),
    ("pretrain", {"text": None}, "not_text"),
    ("pretrain", {"text": " \n\u3000"}, "empty"),
    ("pretrain", {"text": "x" * 101}, "too_long"),
    ("pretrain", {"text": "a\x00b"}, "control_characters"),
    ("pretrain", {"text": "a\x85b"}, "control_characters"),
    ("pretrain", {"text": "a\ud800b"}, "invalid_utf8"),
    ("instructions", {"text": "x"}, "missing_field"),
    ("instructions", {"conversations": "x"}, "not_turns"),
    ("instructions", {"conversations": ["x"]}, "not_turns"),
    ("instructions", {"conversations": []}, "empty"),
    ("instructions", {"conversations": [{"role": "user"}]}, "missing_field"),
    ("instructions", turns(ASK, ("assistant", " \n")), "empty_turn"),
    ("instructions", turns(ASK, ("assistant", None)), "not_text"),
    ("instructions", turns(ASK, ("assistant", "x" * 101)), "too_long"),
    ("instructions", turns(ASK, ("assistant", "\x1b[1m")), "control_characters"),
    ("instructions", turns(ASK, ("tool", "x")), "wrong_role"),
    ("instructions", turns(ASK, (3, "x")), "wrong_role"),
    ("instructions", turns(ASK, REPLY, ("system", "x")), "wrong_role"),
    ("instructions", turns(REPLY, ASK), "first_turn_not_user"),
    ("instructions", turns(ASK, ASK, REPLY), "roles_do_not_alternate"),
    ("instructions", turns(ASK), "no_assistant_turn"),
    ("instructions", turns(("system", "x")), "no_assistant_turn"),
    ("instructions", turns(ASK, REPLY, ASK), "last_turn_not_assistant"),
    ("preferences", {"prompt": "Well?", "chosen": "Yes.", "rejected": "Yes."}, "no_preference"),
    ("preferences", {"prompt": "Well?", "chosen": "Yes."}, "missing_field"),
    ("preferences", {"chosen": [*ASKED, ANSWERED], "rejected": [ANSWERED]}, "first_turn_not_user"),
    (
        "preferences",
        {"chosen": [*ASKED, ANSWERED], "rejected": [ASKED[0] | {"content": "Oh?"}, ANSWERED]},
        "prompts_differ",
    ),
    ("benchmarks", [1], "not_an_object"),
    ("benchmarks", {"question": " ", "n": 1}, "empty"),
    ("benchmarks", {"question": "x" * 101}, "too_long"),
]


@pytest.mark.parametrize(("kind", "value", "reason"), FAULTS)
def test_each_fault_has_its_code(kind, value, reason):
    with pytest.raises(BadRow) as caught:
        CHECKS[kind](value, PLAIN, 100)
    assert caught.value.reason == reason


def test_every_code_is_explained_and_every_row_code_is_tried_here():
    from_reading = {"unparsable", "line_too_long", "duplicate"}
    assert {reason for _, _, reason in FAULTS} | from_reading == set(REASONS)


def test_a_kept_text_loses_only_its_windows_line_ends():
    assert check_pretrain({"text": " a\tb\r\nc\x0cé\n", "source": "x"}, PLAIN, 100) == {"text": " a\tb\nc\x0cé\n"}


def test_a_conversation_may_open_with_a_system_turn_and_have_many_turns():
    value = turns(("system", "Be kind."), ASK, REPLY, ASK, REPLY)
    assert check_instructions(value, PLAIN, 100) == value


def test_other_names_of_fields_and_roles_become_ours():
    roles = {"human": "user", "gpt": "assistant"}
    options = RowOptions(conversations_field="dialog", role_field="from", content_field="value", roles=roles)
    value = {"dialog": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    assert check_instructions(value, options, 100) == turns(("user", "Hi"), ("assistant", "Ho"))


def test_the_same_content_is_a_duplicate_and_other_content_is_not(tmp_path):
    seen = DuplicateFilter(tmp_path / "seen.sqlite")
    contents = [content_of({"text": f"row {number}"}) for number in range(2000)]
    assert not any(seen.is_duplicate(content) for content in contents)
    assert all(seen.is_duplicate(content) for content in contents)
    seen.close()
    assert list(tmp_path.iterdir()) == []


def test_moving_words_between_turns_makes_another_content():
    assert content_of(turns(("user", "ab"), ("assistant", "c"))) != content_of(
        turns(("user", "a"), ("assistant", "bc"))
    )

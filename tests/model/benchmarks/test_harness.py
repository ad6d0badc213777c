"""The harness adapter: what reaches the decoder, what comes back, and that gold answers count."""

import json
import math
import socket
from types import SimpleNamespace

import pytest
from table_decoder import TableAnswer, TableDecoder

from model.benchmarks.harness import UnmaskLM, run_tasks
from model.benchmarks.judge import open_judge
from model.benchmarks.records import make_records, summarise
from model.benchmarks.suite import load_suite
from model.benchmarks.task_forms import generation_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_rows):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, rows in toy_rows.items():
        (folder / f"{name}.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def toy(folder, judge, limit=None):
    return load_suite(["toy_world"], "test", folder=folder, judge=judge, max_new_tokens=200, limit=limit)


def requests(*arguments):
    return [SimpleNamespace(args=one, task_name="t", doc_id=number) for number, one in enumerate(arguments)]


def test_every_benchmark_gives_gold_answers_100_and_empty_ones_0(folder, tokenizer, toy_rows, monkeypatch):
    def refuse(*_):
        raise AssertionError("the harness opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    rows = [row for name in toy_rows for row in toy_rows[name]]
    with open_judge() as judge:
        for text, wanted in (
            (lambda row: row["answer"], 100.0),
            (lambda row: "", 0.0),
            (lambda row: row["final"], 0.0),
        ):
            decoder = TableDecoder(tokenizer, {row["question"]: text(row) for row in rows})
            suite = toy(folder, judge)
            records = make_records(run_tasks(UnmaskLM(tokenizer, decoder), suite.tasks), suite.categories)
            summary = summarise(records, tokenizer.eos_token_id, resamples=50)
            assert len(summary["benchmarks"]) == 12 and len(summary["categories"]) == 4
            assert {one["value"] for one in summary["benchmarks"].values()} == {wanted}
    assert [record["id"] for record in records] == [row["id"] for row in rows]  # order kept, the harness's and ours


def test_the_decoder_sees_the_prompt_and_one_limit_for_all_never_the_answer(folder, tokenizer, toy_rows):
    rows = [row for name in toy_rows for row in toy_rows[name]]
    decoder = TableDecoder(tokenizer, {row["question"]: row["answer"] for row in rows})
    with open_judge() as judge:
        run_tasks(UnmaskLM(tokenizer, decoder, maximum_new_tokens=150), toy(folder, judge).tasks)
    (prompts, limit), *others = decoder.calls
    assert others == [] and limit == 150
    assert prompts == [decoder.prompt(row["question"]) for row in rows]


def test_a_limit_takes_the_first_items_of_each_benchmark(folder, tokenizer):
    with open_judge() as judge:
        suite = toy(folder, judge)
        samples = run_tasks(UnmaskLM(tokenizer, TableDecoder(tokenizer, {})), suite.tasks, limit=2)
    ids = [json.loads(sample.document["row"])["id"] for sample in samples]
    assert len(ids) == 24 and all(one.endswith(("-0", "-1")) for one in ids)


def test_answers_keep_the_order_of_requests_whatever_their_limits(tokenizer):
    decoder = TableDecoder(tokenizer, {f"q{n}": f"answer {n}" for n in range(4)})
    model = UnmaskLM(tokenizer, decoder)
    text = [tokenizer.decode(decoder.prompt(f"q{n}")) for n in range(4)]
    asked = requests(*[(text[n], {"max_gen_toks": limit}) for n, limit in enumerate((50, 20, 50, 20))])
    assert model.generate_until(asked) == [f"answer {n}" for n in range(4)]
    assert sorted((len(prompts), limit) for prompts, limit in decoder.calls) == [(2, 20), (2, 50)]
    assert model.decoded["t", 3].tokens[:-1] == tokenizer.encode("answer 3", add_special_tokens=False)


def test_text_ends_at_the_first_eos_and_at_the_first_until_string(tokenizer):
    model = UnmaskLM(tokenizer)
    eos, encode = tokenizer.eos_token_id, model.encode
    assert model.text([*encode("one"), eos, *encode("two")], []) == "one"
    assert model.text(encode("step one\nQuestion: more"), ["Question:", "\n"]) == "step one"
    assert model.text(encode("a stop b"), "stop") == "a "
    assert model.text(encode("a b"), [""]) == "a b"


def test_tokens_after_the_first_eos_and_their_forwards_are_counted_apart(tokenizer, toy_rows):
    eos, rows = tokenizer.eos_token_id, toy_rows["money"][:2]
    answers = [
        TableAnswer([5, 6, 7, eos, 8, 9], [1] * 6, [0.5] * 4 + [0.0] * 2, 2),
        TableAnswer([5, 6], [1, 2], [1.0, 1.0], 2),
    ]
    task = generation_task(
        "money", rows, lambda row: row["question"], lambda row: row["answer"], lambda row, text: True, 32
    )
    samples = run_tasks(UnmaskLM(tokenizer, lambda prompts, limit: answers), [task])
    summary = summarise(make_records(samples, {"money": "mathematics"}), eos, resamples=50)
    assert summary["tokens_per_forward"]["value"] == (4 + 2) / 4
    assert summary["mean_confidence"] == pytest.approx((4 * 0.5 + 2) / 6)
    assert summary["unfinished_fraction"] == 0.5


def test_prompts_that_do_not_fit_lose_their_beginning_and_are_counted(tokenizer):
    decoder = TableDecoder(tokenizer, {})
    model = UnmaskLM(tokenizer, decoder, maximum_tokens=20)
    model.generate_until(requests(("how many " * 50, {"max_gen_toks": 12})))
    assert len(decoder.calls[0][0][0]) == 8 and len(model.truncated) == 1
    with pytest.raises(ValueError, match="no room"):
        model.generate_until(requests(("x", {"max_gen_toks": 20})))


def test_records_say_whose_prompt_was_cut_and_keep_their_ids_however_many_are_asked(tokenizer):
    rows = [{"question": "how many " * 40}, {"question": "how"}, {"question": "many"}]
    tasks = [
        generation_task(name, rows, lambda row: row["question"], lambda row: "", lambda row, text: True, 12)
        for name in ("first", "second")
    ]
    model = UnmaskLM(tokenizer, TableDecoder(tokenizer, {}), maximum_tokens=40)
    for limit in (2, 3):
        records = make_records(run_tasks(model, tasks, limit=limit), {"first": "a", "second": "b"})
        places = [(record["benchmark"], record["id"], record.get("is_truncated", False)) for record in records]
        assert places == [(name, str(n), n == 0) for name in ("first", "second") for n in range(limit)]
        assert summarise(records, tokenizer.eos_token_id, resamples=10)["truncated_prompts"] == 2


def test_likelihood_requests_reach_the_likelihood_split_where_the_tokens_split(tokenizer):
    seen = []

    def likelihood(pairs):
        seen.extend(pairs)
        return [(-1.0, False)] * len(pairs)

    model = UnmaskLM(tokenizer, likelihood=likelihood)
    assert model.loglikelihood(requests(("the shop ", "sells"), ("", "sells"))) == [(-1.0, False)] * 2
    assert tokenizer.decode(seen[0][0]) == "the shop" and tokenizer.decode(seen[0][1]) == " sells"
    assert seen[1] == ([tokenizer.eos_token_id], model.encode("sells"))


def test_rolling_likelihood_scores_every_token_once(tokenizer):
    scored = []

    def likelihood(pairs):
        scored.extend(token for _, continuation in pairs for token in continuation)
        assert all(len(context) + len(continuation) <= 16 for context, continuation in pairs)
        return [(-float(len(continuation)), False) for _, continuation in pairs]

    model = UnmaskLM(tokenizer, likelihood=likelihood, maximum_tokens=16)
    text = "a shop sells apples and pears " * 8
    assert model.loglikelihood_rolling(requests((text,))) == [-float(len(model.encode(text)))]
    assert scored == model.encode(text)


def test_a_task_that_needs_what_the_model_lacks_says_so(tokenizer):
    with pytest.raises(ValueError, match="no decoder"):
        UnmaskLM(tokenizer).generate_until(requests(("x", {})))
    with pytest.raises(ValueError, match="no likelihood"):
        UnmaskLM(tokenizer).loglikelihood(requests(("x", "y")))


def test_prompts_are_tokenised_as_in_training(tokenizer):
    from model.text.tokenizer import encode_conversation

    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "#### 3"}]
    prompt = UnmaskLM(tokenizer).encode(UnmaskLM(tokenizer).apply_chat_template(turns[:1]))
    ids, graded = encode_conversation(tokenizer, turns)
    assert list(ids[: len(prompt)]) == prompt and not graded[: len(prompt)].any() and graded[len(prompt)]
    assert math.isfinite(len(UnmaskLM(tokenizer).tokenizer_name))

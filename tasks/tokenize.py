"""python -m tasks.tokenize: learns or loads the tokenizer and turns the validated corpora into packed rows of token ids.

Reads data/validated; writes data/tokens (tokenizer/, pretrain|instructions/train|validation/<corpus>/, mixture.json with the
weights) and data/metrics/tokenize.json. Killed, it goes on where it was.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from model.atomic import write_json
from model.corpora.options import read_options
from model.text.encoding import is_validation, read_lines, texts_of
from model.text.packing import Layout
from model.text.tokenise import SPLITS, Corpus, CorpusTokeniser
from model.text.tokenizer import load_tokenizer, pad_id, save_tokenizer, train_tokenizer
from tasks.stage import Stage, run_stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KINDS = ("pretrain", "instructions", "preferences")
SAMPLE_BYTES_PER_TOKEN = (
    16 * 2**10
)  # merges of a byte-level BPE hardly move beyond; a vocabulary of 512 learns from 8 MiB
LARGEST_SAMPLE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TokenizeOptions:
    """The section `tokenize`."""

    tokenizer: str = "train"  # train, or a folder or Hugging Face id of a tokenizer
    vocabulary_size: int = 512  # of a trained one
    row_tokens: int = 128
    block_tokens: int = 16
    validation_fraction: float = 0.02
    maximum_too_long_fraction: float = 0.01  # of a corpus' conversations; as many may be left out, more are refused


def tokenize(stage: Stage) -> None:
    """Publishes data/tokens and data/metrics/tokenize.json; ValueError for corpora without rows and impossible settings."""
    # Rust reads these at its first use. The ids do not depend on the number of threads.
    os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"] = str(stage.threads), "true"
    options = read_options(TokenizeOptions, {k: v for k, v in stage.section.items() if k != "threads"}, "tokenize")
    if not 0 < options.validation_fraction < 1:
        raise ValueError(
            f"tokenize.validation_fraction is {options.validation_fraction}; it must lie between 0 and 1, e.g. 0.02: training "
            "watches the loss on rows held out"
        )
    if not 0 <= options.maximum_too_long_fraction < 1:
        raise ValueError(
            f"tokenize.maximum_too_long_fraction is {options.maximum_too_long_fraction}; it must lie in [0, 1): a share of "
            "conversations"
        )
    Layout(options.row_tokens, options.block_tokens, 1, 0, 0)  # refuses rows that are not whole blocks before any work
    corpora = find_corpora(stage.root / "data/validated")
    made = stage.work / "made"
    tokenizer = prepare_tokenizer(options, corpora, made / "tokenizer")
    layout = Layout(options.row_tokens, options.block_tokens, len(tokenizer), tokenizer.eos_token_id, pad_id(tokenizer))
    tokeniser = CorpusTokeniser(
        tokenizer, layout, options.validation_fraction, made, stage.work / "journals", processes=stage.threads
    )
    metas: dict[tuple[str, str], dict[str, Any]] = {}
    is_resumed, began = any((stage.work / "journals").glob("*.json")), time.monotonic()
    total = sum(corpus.path.stat().st_size for corpus in corpora)
    with tqdm(total=total, desc="tokenize", unit="B", unit_scale=True, mininterval=1.0, dynamic_ncols=True) as bar:
        for corpus in corpora:
            metas[corpus.kind, corpus.name] = tokeniser.run(corpus, bar.update)
    seconds = None if is_resumed else time.monotonic() - began
    check_rows(metas, options)
    present = [kind for kind in KINDS if kind != "preferences" or any(corpus.kind == kind for corpus in corpora)]
    mixture = {kind: {corpus.name: corpus.weight for corpus in corpora if corpus.kind == kind} for kind in present}
    write_json(made / "mixture.json", mixture)
    numbers = {
        "vocabulary_size": len(tokenizer),
        **{f"{kind}/{name}": figures(meta) for (kind, name), meta in metas.items()},
    }
    write_json(stage.work / "metrics.json", numbers)
    stage.tracker.log_metrics(data_metrics(len(tokenizer), metas, seconds))
    stage.publish(stage.work / "metrics.json", "data/metrics/tokenize.json")
    stage.publish(made, "data/tokens")
    for (kind, name), meta in metas.items():
        trained = meta["train"]
        print(
            f"tokenize: {kind}/{name}: {trained['documents']} texts in {trained['rows']} rows, {trained['tokens']} tokens, "
            f"{trained['fill_fraction']:.1%} full, {trained['too_long']} too long for a row, "
            f"{meta['validation']['rows']} rows held out",
            flush=True,
        )


def find_corpora(validated: Path) -> list[Corpus]:
    """Every validated corpus with its weight, by kind and name; ValueError where there is none or one is empty."""
    summary = validated / "summary.json"
    if not summary.exists():
        raise ValueError(f"{summary} is missing: run the stage validate first")
    entries = [entry for entry in json.loads(summary.read_text())["corpora"].values() if entry["kind"] in KINDS]
    corpora = [
        Corpus(
            entry["kind"], entry["name"], validated / entry["kind"] / f"{entry['name']}.jsonl", float(entry["weight"])
        )
        for entry in sorted(entries, key=lambda entry: (KINDS.index(entry["kind"]), entry["name"]))
    ]
    if not corpora:
        raise ValueError("data/validated holds no corpus: name one under download.pretrain or download.instructions")
    empty = [
        f"{corpus.kind}/{corpus.name}"
        for corpus in corpora
        if not corpus.path.exists() or not corpus.path.stat().st_size
    ]
    if empty:
        raise ValueError(
            f"no validated rows in {', '.join(empty)}: look into data/quarantine, or leave it out of download"
        )
    return corpora


def prepare_tokenizer(options: TokenizeOptions, corpora: list[Corpus], folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer, saved in `folder` in one rename; one saved there by an earlier start is taken as it is."""
    if not folder.exists():
        unfinished = folder.parent / "tokenizer-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        if options.tokenizer == "train":
            train_tokenizer(sample_texts(corpora, options), options.vocabulary_size, unfinished)
        else:
            save_tokenizer(load_tokenizer(options.tokenizer), unfinished)
        os.replace(unfinished, folder)
    return load_tokenizer(folder)


def sample_texts(corpora: list[Corpus], options: TokenizeOptions) -> Iterator[str]:
    """Training texts to learn a vocabulary from: pretraining and instructions alike, corpora by weight, spread over each file."""
    budget = min(LARGEST_SAMPLE_BYTES, SAMPLE_BYTES_PER_TOKEN * options.vocabulary_size)
    kinds = {corpus.kind for corpus in corpora}
    for corpus in corpora:
        weights = sum(other.weight for other in corpora if other.kind == corpus.kind)
        rate = budget / len(kinds) * corpus.weight / weights / corpus.path.stat().st_size
        due = 0.0
        for lines, _ in read_lines(corpus.path):
            for row in map(json.loads, lines):
                due += min(rate, 1.0)
                if due >= 1.0 and not is_validation(row, options.validation_fraction):
                    due -= 1.0
                    yield from texts_of(row)


def check_lengths(kind: str, name: str, meta: dict[str, dict[str, Any]], options: TokenizeOptions) -> None:
    """ValueError where more conversations than allowed are longer than a row: nobody would know they are not learnt from."""
    left_out = sum(meta[split]["too_long"] for split in SPLITS)
    texts = sum(meta[split]["documents"] for split in SPLITS) // (2 if kind == "preferences" else 1) + left_out
    if left_out <= options.maximum_too_long_fraction * texts:
        return
    longest = max((meta[split] for split in SPLITS), key=lambda one: one["longest_too_long_tokens"])
    needed = -(-longest["longest_too_long_tokens"] // options.block_tokens) * options.block_tokens
    what = "pairs" if kind == "preferences" else "conversations"
    raise ValueError(
        f"{left_out} of {texts} {what} of {kind}/{name} are longer than tokenize.row_tokens {options.row_tokens}, more than "
        f"tokenize.maximum_too_long_fraction {options.maximum_too_long_fraction:g} allows to leave out; the longest, line "
        f"{longest['longest_too_long_line']} of data/validated/{kind}/{name}.jsonl, needs {needed}. Raise row_tokens, or "
        f"maximum_too_long_fraction, or leave the corpus out of download.{kind}"
    )


def check_rows(metas: dict[tuple[str, str], dict[str, Any]], options: TokenizeOptions) -> None:
    """ValueError unless conversations fit rows, every corpus has training rows and every kind has validation rows."""
    for (kind, name), meta in metas.items():
        check_lengths(kind, name, meta, options)
        if not meta["train"]["rows"]:
            raise ValueError(
                f"{kind}/{name} gives no training row: its conversations hold no answer, or all of it was held out"
            )
    for kind in [kind for kind in KINDS if any(kind == other for other, _ in metas)]:
        if not sum(meta["validation"]["rows"] for (other, _), meta in metas.items() if other == kind):
            raise ValueError(
                f"tokenize.validation_fraction {options.validation_fraction} holds out no row of {kind}: raise it, or give "
                "more text"
            )


def figures(meta: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What data/metrics/tokenize.json says of a corpus, by split."""
    names = (
        "rows",
        "documents",
        "tokens",
        "graded_tokens",
        "bytes",
        "fill_fraction",
        "too_long",
        "longest_too_long_tokens",
        "longest_too_long_line",
        "without_answer",
    )
    return {
        split: {name: meta[split][name] for name in names}
        | {"bytes_per_token": round(meta[split]["bytes"] / max(meta[split]["graded_tokens"], 1), 4)}
        for split in SPLITS
    }


def data_metrics(vocabulary_size: int, metas: dict[tuple[str, str], Any], seconds: float | None) -> dict[str, float]:
    """What MLflow shows of the tokens: over all corpora, and by corpus `data/<kind>/<name>/...`; a rate unless it was resumed."""
    metrics: dict[str, float] = {"data/vocabulary_size": vocabulary_size}
    whole = Counter()
    for (kind, name), meta in metas.items():
        both = Counter(
            {key: sum(meta[split][key] for split in SPLITS) for key in ("tokens", "rows", "bytes", "graded_tokens")}
        )
        whole += both
        metrics |= {
            f"data/{kind}/{name}/tokens": both["tokens"],
            f"data/{kind}/{name}/packed_rows": both["rows"],
            f"data/{kind}/{name}/fill_fraction": meta["train"]["fill_fraction"],
        }
    metrics |= {
        "data/tokens": whole["tokens"],
        "data/packed_rows": whole["rows"],
        "data/bytes_per_token": whole["bytes"] / max(whole["graded_tokens"], 1),
    }
    return metrics | ({"data/tokens_per_second": whole["tokens"] / max(seconds, 1e-9)} if seconds else {})


if __name__ == "__main__":
    run_stage(tokenize, "tokenize")

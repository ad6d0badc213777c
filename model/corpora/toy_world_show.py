"""Prints samples of the small world and how many tokens its texts have under a 512-entry byte-level BPE.

python -m model.corpora.toy_world_show --show 2 --language en
"""

from __future__ import annotations

import argparse
from itertools import chain

from model.corpora.toy_world import BENCHMARKS, WorldConfig, conversations, documents, questions

NUM_DOCUMENTS, NUM_CONVERSATIONS, NUM_QUESTIONS = 3000, 6000, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", type=int, default=2, help="samples of each benchmark and of the documents")
    parser.add_argument("--language", default="en", choices=["en", "zh"])
    parser.add_argument("--difficulty", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=512)
    options = parser.parse_args()
    config = WorldConfig(language=options.language, difficulty=options.difficulty)
    for row in documents(config, options.show * 3):
        print(f"--- document\n{row['text']}")
    for benchmark in BENCHMARKS:
        for row in questions(config, benchmark, "train", options.show):
            print(f"--- {row['category']} / {benchmark}\nQ: {row['question']}\nA: {row['answer']}")
    _print_lengths(config, options.vocabulary)


def _print_lengths(config: WorldConfig, vocabulary: int) -> None:
    texts = [row["text"] for row in documents(config, NUM_DOCUMENTS)]
    chats = [[turn["content"] for turn in row["conversations"]] for row in conversations(config, NUM_CONVERSATIONS)]
    tokenizer = _train([*texts, *chain.from_iterable(chats)], vocabulary)

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    print(f"\ntokens (p10 / p50 / p90 / p99), vocabulary {vocabulary}")
    print(f"{'documents':12s} {_percentiles([count(text) for text in texts])}")
    # A turn costs one token for its role, the conversation one for its end.
    print(f"{'conversations':12s} {_percentiles([sum(count(turn) + 1 for turn in chat) + 1 for chat in chats])}")
    for benchmark in BENCHMARKS:
        rows = questions(config, benchmark, "train", NUM_QUESTIONS * 5)
        prompts, answers = [count(row["question"]) + 2 for row in rows], [count(row["answer"]) + 1 for row in rows]
        totals = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        print(
            f"{benchmark:12s} prompt {_percentiles(prompts)}   "
            f"answer {_percentiles(answers)}   total {_percentiles(totals)}"
        )


def _train(texts: list[str], vocabulary: int):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _percentiles(values: list[int]) -> str:
    ordered = sorted(values)
    return " / ".join(
        f"{ordered[min(len(ordered) - 1, int(len(ordered) * share))]:4d}" for share in (0.1, 0.5, 0.9, 0.99)
    )


if __name__ == "__main__":
    main()

"""python -m bench.tokenize [--megabytes 32] [--repeats 3] [--threads 2]: tokenising and packing against `datasets.map`.

Generated English-like text goes (a) through CorpusTokeniser to packed rows on disk and (b) through a single-process
`datasets.map` that tokenises batches with the same tokenizer and writes its Arrow file, without any packing. Prints
MB/s of both, the ratio of every repeat, their median, and the memory that (a) grew by, of its processes too. Both may use
`threads` cores: (a) as processes, (b) as threads of the tokenizer. The ratio of processor time is the one to read on a machine
that does other work.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import psutil

VOCABULARY_SIZE = 6400
WORDS = 60_000
DISTINCT_BYTES = 64 * 10**6  # of a larger corpus; then the text comes again


def write_text(path: Path, size: int, seed: int) -> list[str]:
    """A jsonl corpus of about `size` bytes whose words follow Zipf's law, as English ones do; the first texts."""
    rng = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    frequencies = list(accumulate(1 / (place + 1) for place in range(len(letters))))
    words = ["".join(rng.choices(letters, cum_weights=frequencies, k=rng.randint(2, 11))) for _ in range(WORDS)]
    weights = list(accumulate(1 / (place + 2.7) for place in range(WORDS)))
    first: list[str] = []
    written = 0
    with path.open("w") as file:
        while written < min(size, DISTINCT_BYTES):
            sentences = (" ".join(rng.choices(words, cum_weights=weights, k=rng.randint(5, 25))) for _ in range(10))
            text = ". ".join(sentence.capitalize() for sentence in sentences) + f".\n\nIn {rng.randint(1000, 2030)}."
            written += file.write(json.dumps({"text": text}) + "\n")
            if len(first) < 2000:
                first.append(text)
    whole = path.stat().st_size
    with path.open("rb") as text, path.open("ab") as file:
        for _ in range(round(size / whole) - 1):
            text.seek(0)
            for _ in range(0, whole, 2**20):
                file.write(text.read(min(2**20, whole - text.tell())))
    return first


def ours(path: Path, folder: Path, tokenizer, processes: int, tell: Callable[[int], None] = lambda size: None) -> int:
    """Packed rows on disk; the number of tokens. `tell` hears of bytes of text as they are done."""
    from model.text.packing import Layout
    from model.text.tokenise import Corpus, CorpusTokeniser

    layout = Layout(512, 32, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    tokeniser = CorpusTokeniser(tokenizer, layout, 0.01, folder, folder / "work", processes)
    return sum(meta["tokens"] for meta in tokeniser.run(Corpus("pretrain", "text", path, 1.0), tell).values())


def theirs(path: Path, folder: Path, tokenizer) -> int:
    """Token ids in an Arrow file by `datasets.map`, batched, one process; the number of tokens."""
    from datasets import Dataset, Features, Value

    features = Features({"text": Value("string")})
    rows = Dataset.from_json(str(path), cache_dir=str(folder), features=features)
    rows = rows.map(
        lambda batch: {"ids": tokenizer(batch["text"], return_attention_mask=False)["input_ids"]},
        batched=True, remove_columns=["text"], cache_file_name=str(folder / "mapped.arrow"),
    )  # fmt: skip
    return sum(len(chunk.flatten()) for chunk in rows.data.column("ids").chunks)


def measured(function, *arguments) -> tuple[float, float, int]:
    """(seconds, processor seconds of all threads and of processes that have ended, tokens)."""
    began, busy = time.perf_counter(), sum(os.times()[:4])
    tokens = function(*arguments)
    return time.perf_counter() - began, sum(os.times()[:4]) - busy, tokens


def resident_megabytes() -> float:
    """Of this process and its children, now; what they share counts once."""
    here = psutil.Process()
    return sum(process.memory_full_info().pss for process in (here, *here.children())) / 2**20


class Memory:
    """Resident memory while text is worked off, printed at every tenth of a corpus of `size` bytes."""

    def __init__(self, size: int, spoken: bool) -> None:
        self.size, self.spoken, self.done, self.peak, self.before = size, spoken, 0, 0.0, resident_megabytes()

    def __call__(self, size: int) -> None:
        tenth = 10 * self.done // self.size
        self.done, now = self.done + size, resident_megabytes()
        self.peak = max(self.peak, now)
        if self.spoken and 10 * self.done // self.size > tenth:
            print(f"{self.done / 1e6:.0f} MB done, {now:.0f} MB resident", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours-only", action="store_true", help="only (a): for memory over a large corpus")
    options = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(options.threads)}
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    from model.text.tokenizer import train_tokenizer

    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as place:
        root = Path(place)
        texts = write_text(root / "text.jsonl", options.megabytes * 10**6, seed=0)
        size = (root / "text.jsonl").stat().st_size / 1e6
        tokenizer = train_tokenizer(iter(texts), VOCABULARY_SIZE, root / "tokenizer")
        ratios, busy_ratios = [], []
        for repeat in range(options.repeats):
            memory = Memory((root / "text.jsonl").stat().st_size, options.ours_only)
            seconds, busy, tokens = measured(
                ours, root / "text.jsonl", root / f"ours-{repeat}", tokenizer, options.threads, memory
            )
            line = f"{size:.0f} MB: ours {seconds:.1f} s, {size / seconds:.1f} MB/s, {tokens / seconds / 1e6:.2f} M tokens/s"
            line += f", {size / busy:.1f} MB per processor second, memory {memory.before:.0f} -> {memory.peak:.0f} MB"
            if not options.ours_only:
                slow, slow_busy, _ = measured(theirs, root / "text.jsonl", root / f"theirs-{repeat}", tokenizer)
                ratios.append(slow / seconds)
                busy_ratios.append(slow_busy / busy)
                line += f"; datasets.map {slow:.1f} s, {size / slow:.1f} MB/s"
                line += f"; ratio {ratios[-1]:.2f}, of processor time {busy_ratios[-1]:.2f}"
            print(line, flush=True)
        if ratios:
            print(
                f"median ratio {statistics.median(ratios):.2f}, of processor time {statistics.median(busy_ratios):.2f}"
            )


if __name__ == "__main__":
    sys.exit(main())

"""python -m bench.serving [--requests 48] [--rows 16] [--threads 1]: continuous batching against one request at a time.

The same requests, of mixed lengths, through the same network and the server's own engine, once with a batch of one row and once
with `--rows`, in turn; their answers are compared. Prints the ratio of every repeat in wall-clock and in processor time (the one
to read on a machine that does other work). Weights are random: the work is that of a trained network.
"""

import argparse
import queue
import random
import statistics
import time

import torch

from bench.decoding import network, prompts
from model.apps.engine import Engine, Job, News
from model.samplers.block_loop import BlockDecoder
from model.samplers.policies import Threshold
from model.samplers.sampling import Sampling

VOCABULARY = 4096


def answer_all(net, asked: list[tuple[list[int], int]], rows: int) -> tuple[float, float, list[list[int]]]:
    """Seconds, processor seconds and the answers, in order."""
    engine = Engine(BlockDecoder(net, Threshold(0.9), batch_rows=rows), 1024, len(asked))
    told: list[queue.Queue[News]] = [queue.Queue() for _ in asked]
    began, busy = time.perf_counter(), time.process_time()
    for (prompt, tokens), news in zip(asked, told, strict=True):
        engine.submit(Job(prompt, tokens, Sampling(), news.put))
    engine.close()
    engine.join()
    seconds, processor = time.perf_counter() - began, time.process_time() - busy
    return seconds, processor, [list(news.queue)[-1].tokens for news in told]


def main() -> None:
    """Prints a line per repeat and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net, rng = network("block_causal", options.hidden, 4, VOCABULARY), random.Random(0)
    lengths = [rng.randrange(8, 128) for _ in range(options.requests)]
    asked = [(prompt, rng.randrange(16, 128)) for prompt in prompts(lengths, VOCABULARY)]
    ratios = []
    for _ in range(options.repeats):
        alone = answer_all(net, asked, 1)
        shared = answer_all(net, asked, options.rows)
        ratios.append((alone[0] / shared[0], alone[1] / shared[1]))
        same = sum(a == b for a, b in zip(alone[2], shared[2], strict=True))
        tokens = sum(map(len, shared[2]))
        rates = tokens / shared[0], tokens / alone[0]
        print(
            f"serving: {rates[0]:.0f} tokens a second with {options.rows} rows, {rates[1]:.0f} with one request at a time; "
            f"ratio {ratios[-1][0]:.2f}, of processor time {ratios[-1][1]:.2f}; same answers {same} of {len(asked)}",
            flush=True,
        )
    wall, busy = (statistics.median(ratio[side] for ratio in ratios) for side in range(2))
    print(f"serving: median ratio {wall:.2f}, of processor time {busy:.2f}")


if __name__ == "__main__":
    main()

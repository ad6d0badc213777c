"""python -m bench.decoding [window] [dual] [memory] [--repeats 3] [--threads 1] [--rows 1 16]: decoding against plain loops.

window: a block-causal network, 512 new tokens in blocks of 32, with our cache against reading the window [0, block's end)
again in every step, as LLaDA 2.0's public `generate` does. dual: a bidirectional network, our dual cache against a dual-cache
loop written from Fast-dLLM's description, one row at a time. Both print the ratio of every repeat in wall-clock and in
processor time (the one to read on a machine that does other work), their medians, and whether the tokens were the same.
memory: the peak of a decode of 4,096 tokens, in a process of its own, against cache and weights. Weights are random: the work
is that of a trained network.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

from model.network.config import NetworkConfig
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer, num_parameters
from model.samplers import compatibility
from model.samplers.decode import make_decoder

BLOCK, MASK = 32, 5


def network(attention: str, hidden: int, layers: int, vocabulary: int, positions: int = 8192) -> Transformer:
    """Random weights; the head spreads confidences, but not so far that they saturate and rounding decides the order."""
    config = NetworkConfig(
        vocabulary, hidden, layers, hidden // 64, 3 * hidden, attention=attention, block_tokens=BLOCK,
        maximum_positions=positions, mask_token_id=MASK, eos_token_id=1,
    )  # fmt: skip
    made = Transformer(config).eval()
    made.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.unembedding.weight.mul_(4.0)
    return made


def prompts(lengths: list[int], vocabulary: int) -> list[list[int]]:
    """Random prompts without mask or EOS."""
    rng = torch.Generator().manual_seed(1)
    return [torch.randint(6, vocabulary, (length,), generator=rng).tolist() for length in lengths]


@torch.no_grad()
def window_loop(net: Transformer, prompt: list[int], new: int, steps: int) -> list[int]:
    """LLaDA 2.0's loop with a fixed schedule: every forward reads the window up to the block's end, logits everywhere."""
    start = len(prompt) // BLOCK * BLOCK
    end = start - (-(len(prompt) + new - start) // BLOCK) * BLOCK
    canvas = torch.full((1, end), MASK)
    canvas[0, : len(prompt)] = torch.tensor(prompt)
    for begin in range(start, end, BLOCK):
        window = begin + BLOCK
        positions = torch.arange(window)[None]
        pattern = AttentionPattern("block_causal", torch.zeros_like(positions), positions, BLOCK)
        for step in range(steps):
            block = canvas[:, begin:window]
            hidden = block == MASK
            if not hidden.any():
                break
            logits = net.head(net(canvas[:, :window], positions, pattern))[:, -BLOCK:]
            reveal_best(block, hidden, logits.float().softmax(-1), BLOCK // steps + (step < BLOCK % steps))
    return canvas[0, len(prompt) : len(prompt) + new].tolist()


def reveal_best(block: torch.Tensor, hidden: torch.Tensor, probability: torch.Tensor, count: int) -> None:
    """Write the most confident `count` hidden positions of a row, in place; the mask token is not proposed."""
    probability[..., MASK] = 0.0
    confidence, token = probability.max(-1)
    confidence = torch.where(hidden, confidence, -torch.inf)
    chosen = confidence[0].topk(min(count, int(hidden.sum()))).indices
    block[0, chosen] = token[0, chosen]


@torch.no_grad()
def dual_loop(net: Transformer, prompt: list[int], new: int, steps: int) -> list[int]:
    """Fast-dLLM's dual cache: a block's first forward reads the canvas and fills the cache, later ones overwrite its part."""
    canvas = torch.full((1, len(prompt) + new), MASK)
    canvas[0, : len(prompt)] = torch.tensor(prompt)
    for begin in range(len(prompt), canvas.shape[1], BLOCK):
        cache: list = [None] * len(net.layers)
        for step in range(steps):
            block = canvas[:, begin : begin + BLOCK]
            hidden = block == MASK
            if not hidden.any():
                break
            first = 0 if step == 0 else begin
            tokens = canvas if step == 0 else block
            probability = cached_logits(net, tokens, first, cache).double().softmax(-1)
            probability = probability[:, begin - first : begin - first + BLOCK]
            reveal_best(block, hidden, probability, BLOCK // steps + (step < BLOCK % steps))
    return canvas[0, len(prompt) :].tolist()


def cached_logits(net: Transformer, tokens: torch.Tensor, first: int, cache: list) -> torch.Tensor:
    """Logits of all tokens, which stand at positions first, first + 1, ...; their keys and values go into the cache."""
    x = net.embedding(tokens)
    turn = net.rotary(torch.arange(first, first + tokens.shape[1])[None], x.dtype)
    for index, layer in enumerate(net.layers):
        query, key, value = layer.attention.read(layer.attention_norm(x), turn, None)
        if cache[index] is None:
            cache[index] = (key, value)
        else:
            for stored, own in zip(cache[index], (key, value), strict=True):
                stored[:, :, first : first + own.shape[2]] = own
        mixed = torch.nn.functional.scaled_dot_product_attention(query, *cache[index])
        x = x + layer.attention.output(mixed.transpose(1, 2).flatten(2))
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
    return net.head(net.norm(x))


def timed(function) -> tuple[float, float, list]:
    """(seconds, processor seconds, result)."""
    began, busy = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - began, time.process_time() - busy, result


def race(name: str, ours, theirs, repeats: int) -> None:
    """Both sides in turn; the ratio of every repeat."""
    ratios = []
    for _ in range(repeats):
        fast, fast_busy, found = timed(ours)
        slow, slow_busy, expected = timed(theirs)
        ratios.append((slow / fast, slow_busy / fast_busy))
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        print(
            f"{name}: ours {fast:.2f} s ({fast_busy:.2f} s of processor), baseline {slow:.2f} s ({slow_busy:.2f} s); "
            f"ratio {ratios[-1][0]:.2f}, of processor time {ratios[-1][1]:.2f}; same answers {same} of {len(expected)}",
            flush=True,
        )
    wall, busy = (statistics.median(ratio[side] for ratio in ratios) for side in range(2))
    print(f"{name}: median ratio {wall:.2f}, of processor time {busy:.2f}", flush=True)


def window(repeats: int, length: int, new: int = 512, steps: int = 8) -> None:
    """Our exact cache against recomputing the window."""
    net = network("block_causal", hidden=512, layers=4, vocabulary=4096)
    asked = prompts([length], 4096)
    quirks = compatibility.Quirks(stop="never", mask_counts=True)
    decode = make_decoder(net, {"name": "fixed_steps", "steps": steps}, quirks=quirks)
    print(
        f"window: {num_parameters(net) / 1e6:.0f} M parameters, prompt {length}, {new} new tokens, {steps} steps a block"
    )
    race("window", lambda: [decode(asked, new)[0].tokens], lambda: [window_loop(net, asked[0], new, steps)], repeats)


def dual(repeats: int, rows: list[int], hidden: int, vocabulary: int, new: int = 64, steps: int = 8) -> None:
    """Our dual cache against a plain dual-cache loop, row by row."""
    net = network("bidirectional", hidden=hidden, layers=4, vocabulary=vocabulary)
    options = compatibility.fast_dllm(steps * new // BLOCK, new, BLOCK, variant="dual")
    options["quirks"] = compatibility.Quirks(grid_from_prompt=True, stop="never", mask_counts=True)
    print(f"dual: {num_parameters(net) / 1e6:.0f} M parameters, {new} new tokens, {steps} steps a block")
    for count in rows:
        asked = prompts([32 + 29 * row % 97 for row in range(count)], vocabulary)
        decode = make_decoder(net, batch_rows=count, **options)
        race(
            f"dual, {count} rows",
            lambda asked=asked, decode=decode: [one.tokens for one in decode(asked, new)],
            lambda asked=asked: [dual_loop(net, prompt, new, steps) for prompt in asked],
            repeats,
        )


def memory() -> None:
    """In a process of its own: what a decode of 4,096 tokens adds at its peak."""
    done = subprocess.run([sys.executable, "-m", "bench.decoding", "measure-memory"], capture_output=True, text=True)
    print(done.stdout.strip() or done.stderr.strip()[-2000:], flush=True)


def measure_memory() -> None:
    """Peak growth over the process without a network, against weights and cache."""
    make_decoder(network("block_causal", 64, 1, 100), {"name": "fixed_steps", "steps": 1})([[7] * 40], 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    net = network("block_causal", hidden=768, layers=8, vocabulary=8192)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())
    decode = make_decoder(net, {"name": "fixed_steps", "steps": 1}, quirks=compatibility.Quirks(stop="never"))
    (found,) = decode(prompts([1024], 8192), 3072)
    cache = 2 * 8 * 768 * 4096 * 4
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(
        f"memory: 4,096 tokens ({len(found.tokens)} new), weights {weights / 1e6:.0f} MB, cache {cache / 1e6:.0f} MB, peak "
        f"growth {grown / 1e6:.0f} MB: {grown / (weights + cache) - 1:+.1%} over weights and cache"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ["window", "dual", "memory", "measure-memory"]
    parser.add_argument(
        "sections", nargs="*", choices=[*sections, []], default=[], help="what to measure (default: all)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of window's prompt")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--hidden", type=int, default=256, help="width of dual's network")
    parser.add_argument("--vocabulary", type=int, default=126_464, help="of dual's network (default: LLaDA's)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, torch {torch.__version__}") if "measure-memory" not in options.sections else None
    for section in options.sections or sections[:3]:
        if section == "window":
            window(options.repeats, options.prompt)
        elif section == "dual":
            dual(options.repeats, options.rows, options.hidden, options.vocabulary)
        elif section == "memory":
            memory()
        else:
            measure_memory()


if __name__ == "__main__":
    main()

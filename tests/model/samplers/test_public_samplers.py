"""Parity with the public samplers, token for token and forward for forward, on the fixtures computed by their own code.

All rows of a case decode in one batch, beside another one of another length: batching must not show.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from model.checkpoints.store import load_checkpoint
from model.network.transformer import Transformer
from model.samplers import compatibility
from model.samplers.decode import make_decoder
from model.samplers.results import Decoded

FIXTURES = Path(__file__).parents[2] / "fixtures"


@cache
def fixture(name: str) -> tuple[dict, dict]:
    """Cases by name, and their tensors."""
    cases = json.loads((FIXTURES / name / "cases.json").read_text())
    return cases, load_file(FIXTURES / name / "expected.safetensors")


@cache
def network(name: str) -> Transformer:
    """The fixture's network."""
    return load_checkpoint(FIXTURES / name).network


def cases(name: str, word: str) -> list[str]:
    """The cases of a fixture made by a sampler of that name."""
    path = FIXTURES / name / "cases.json"
    found = [key for key, case in json.loads(path.read_text()).items() if word in case.get("sampler", "")]
    assert found, f"{path} has no case of {word}: an empty list would skip its test in silence"
    return found


def decode(name: str, prompts: list[list[int]], new: int, options: dict, **config) -> list[Decoded]:
    """Answers under a compatibility option, with another row in the batch whose answer is dropped."""
    net = network(name)
    before = net.config
    net.config = replace(before, **config)
    try:
        return make_decoder(net, **options)([prompts[0][1::-1], *prompts], new)[1:]
    finally:
        net.config = before


def answers(decoded: list[Decoded]) -> list[list[int]]:
    return [one.tokens for one in decoded]


def forwards(decoded: list[Decoded]) -> list[int]:
    return [one.target_forwards for one in decoded]


@pytest.mark.parametrize("case", cases("llada-tiny", "LLaDA generate.py"))
def test_llada_generate(case):
    settings, tensors = fixture("llada-tiny")
    setting = settings[case]
    options = compatibility.llada(
        setting["steps"], setting["gen_length"], setting["block_length"], cfg_scale=setting["cfg_scale"]
    )
    prompts = tensors[setting["prompt"]].tolist()
    if f"{case}.attention_mask" in tensors:  # left padding: our rows just begin later
        seen = tensors[f"{case}.attention_mask"].sum(1).tolist()
        prompts = [prompt[-count:] for prompt, count in zip(prompts, seen, strict=True)]
    found = decode("llada-tiny", prompts, setting["gen_length"], options)
    width = tensors[setting["prompt"]].shape[1]
    assert answers(found) == tensors[f"{case}.out"][:, width:].tolist()
    assert forwards(found) == [setting["num_forwards"]] * len(prompts)
    assert {one.cache for one in found} == {"exact"}


@pytest.mark.parametrize("case", cases("llada-tiny", "Fast-dLLM"))
def test_fast_dllm_plain_prefix_and_dual_cache(case):
    settings, tensors = fixture("llada-tiny")
    setting = settings[case]
    names = ("steps", "gen_length", "block_length", "threshold", "variant")
    options = compatibility.fast_dllm(**{name: setting[name] for name in names})
    prompts = tensors[setting["prompt"]].tolist()
    found = decode("llada-tiny", prompts, setting["gen_length"], options)
    assert answers(found) == tensors[f"{case}.out"][:, len(prompts[0]) :].tolist()
    assert forwards(found) == tensors[f"{case}.nfe"].tolist()
    label = "exact" if setting["variant"] == "plain" else f"{setting['variant']} (approximate)"
    assert {one.cache for one in found} == {label}


@pytest.mark.parametrize("case", cases("llada2-moe-tiny", "llada2 generate"))
def test_llada2_generate(case):
    settings, tensors = fixture("llada2-moe-tiny")
    setting = settings[case]
    names = ("steps", "gen_length", "block_length", "threshold", "minimal_topk", "eos_early_stop")
    options = compatibility.llada2(**{name: setting[name] for name in names if name in setting})
    check_rows("llada2-moe-tiny", case, setting, tensors, options)


@pytest.mark.parametrize("case", cases("llada21-edit-tiny", "llada21 generate"))
def test_llada21_generate_with_token_editing(case):
    settings, tensors = fixture("llada21-edit-tiny")
    setting = settings[case]
    names = ("block_length", "threshold", "editing_threshold", "max_post_steps", "num_to_transfer", "eos_early_stop")
    check_rows("llada21-edit-tiny", case, setting, tensors, compatibility.llada21(**{n: setting[n] for n in names}))


def check_rows(name: str, case: str, setting: dict, tensors: dict, options: dict) -> None:
    """Every row by itself among the others, under its own EOS."""
    prompts = tensors[setting["prompt"]].tolist()
    for eos in set(setting["eos_id_per_row"]):
        config = {"attention": "block_causal", "mask_token_id": setting["mask_id"], "eos_token_id": eos}
        for row, found in enumerate(decode(name, prompts, setting["gen_length"], options, **config)):
            if setting["eos_id_per_row"][row] == eos:
                assert found.tokens == tensors[f"{case}.row{row}.out"].tolist()
                assert found.target_forwards == setting["num_forwards"][row]
                assert found.cache == "exact"


def test_nano_llada_generate():
    settings, tensors = fixture("minimind-tiny")
    setting = settings["diffusion_gen"]
    options = compatibility.nano_llada(setting["gen_steps"], setting["block_size"], setting["temp"], setting["top_k"])
    prompt, mask = tensors["diffusion_gen.prompt"].tolist(), settings["tokens"]["mask_token_id"]
    found = decode(
        "minimind-tiny", [prompt], setting["max_new_tokens"], options, attention="bidirectional", mask_token_id=mask
    )[0]
    assert found.tokens == tensors["diffusion_gen.out"][len(prompt) :].tolist()
    assert found.target_forwards == setting["num_forwards"]


def test_left_to_right_continues_as_the_public_network_does():
    settings, tensors = fixture("minimind-upstream-tiny")
    prompts = tensors["ar_greedy.prompt"].tolist()
    (found,) = make_decoder(network("minimind-upstream-tiny"))(prompts, settings["ar_greedy"]["max_new_tokens"])
    assert found.tokens == tensors["ar_greedy.out"][0, len(prompts[0]) :].tolist()

"""A root with a registry of tiny random networks, and a real server process on it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import yaml

from model.checkpoints.store import save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from model.training.tracking import open_store
from tasks.serving.settings import ServeConfig

ROOT = Path(__file__).resolve().parents[3]
NAME = "unmask-target"
SETTINGS: dict[str, Any] = {
    "model": f"{NAME}@champion", "host": "127.0.0.1", "port": 0, "api_key_variable": None,
    "policy": {"name": "threshold", "threshold": 0.9}, "speculation": "when_it_pays", "precision": "float32",
    "batch_rows": 4, "context_tokens": None, "max_new_tokens": 400, "temperature": 0.0, "queue_requests": 60,
    "request_seconds": 120, "drain_seconds": 60, "body_bytes": 20_000, "reload_seconds": 0.2,
}  # fmt: skip


def config(**changes: Any) -> ServeConfig:
    return ServeConfig.from_section(SETTINGS | changes)


def write_checkpoint(root: Path, folder: Path, seed: int, attention: str = "block_causal") -> None:
    """Sharp random logits, so that rounding decides nothing, and no EOS, so that answers are as long as they may be."""
    if not (root / "tokenizer").exists():
        texts = ["What is 3 + 4? Mira has three pens, and Tom has none at all.", "Zoë’s größter Fuß: 北京 ☃"]
        train_tokenizer(iter(texts * 30), 330, root / "plain")
        add_mask_token(load_tokenizer(root / "plain"), root / "tokenizer")
    kept = root / ("plain" if attention == "causal" else "tokenizer")  # without a mask token, and with one
    tokenizer = load_tokenizer(kept)
    shape = NetworkConfig(
        vocabulary_size=len(tokenizer), hidden_size=24, num_layers=2, num_heads=2, feed_forward_size=32,
        maximum_positions=512, attention=attention, block_tokens=8, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, mask_token_id=tokenizer.mask_token_id,
    )  # fmt: skip
    network = Transformer(shape)
    network.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(9)
        network.unembedding.weight[tokenizer.eos_token_id] = 0
    save_checkpoint(folder, network, shape, kept)


def add_version(
    root: Path, seed: int, alias: str | None = None, tags: dict[str, str] | None = None, attention: str = "block_causal"
) -> str:
    """Another version in the registry, whose files lie where the register stage would put them."""
    client, _ = open_store(root)
    folder = root / f"versions/{seed}"
    write_checkpoint(root, folder / "artifacts/checkpoint", seed, attention)
    if not client.search_registered_models(f"name = '{NAME}'"):
        client.create_registered_model(NAME)
    version = client.create_model_version(NAME, folder.as_uri(), tags=tags or {}).version
    if alias:
        client.set_registered_model_alias(NAME, alias, version)
    return str(version)


@dataclass
class Server:
    """A running `python -m tasks.serve`."""

    process: subprocess.Popen
    address: str
    lines: list[str]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=120)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", timeout=60)

    def figure(self, name: str) -> float:
        """A sample of /metrics."""
        found = re.search(rf"^{re.escape(name)} ([\d.e+-]+)$", self.get("/metrics").text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def wait(self, line: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not any(line in one for one in self.lines):
            assert time.monotonic() < deadline and self.process.poll() is None, self.lines
            time.sleep(0.05)


@contextmanager
def serving(root: Path, environment: dict[str, str] | None = None, **changes: Any) -> Iterator[Server]:
    (root / "params.yaml").write_text(yaml.safe_dump({"threads": 1, "serve": SETTINGS | changes}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.serve"],
        cwd=root,
        env=kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: [lines.append(line) for line in process.stdout], daemon=True)
    reader.start()
    server = Server(process, "", lines)
    try:
        server.wait("is ready")
        server.address = re.search(r"http://[\d.:]+", "".join(lines)).group(0)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            reader.join(10)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serving")
    add_version(root, 1, "champion")
    return root


@pytest.fixture(scope="session")
def server(registry: Path) -> Iterator[Server]:
    with serving(registry) as running:
        yield running


def wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)

"""A model of the hub, from a small stand-in for it on this machine: downloaded once, without its code and its pickles."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest

from model.checkpoints.store import export_checkpoint, load_checkpoint

ROOT = Path(__file__).resolve().parents[3]
FIXTURE = ROOT / "tests/fixtures/llada2-moe-tiny"
COMMIT = "b" * 40
SCRIPT = """
import sys
from model.checkpoints.store import load_checkpoint
try:
    checkpoint = load_checkpoint(sys.argv[1])
    print(checkpoint.family, sorted(path.name for path in checkpoint.folder.iterdir()))
except ValueError as error:
    print("refused:", error)
"""


def handler(files: dict[str, bytes], asked: list[str]) -> type[BaseHTTPRequestHandler]:
    class StandIn(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            path = urlparse(self.path).path
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/org/name/revision/"):
                known = [{"rfilename": each} for each in files]
                self.answer(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": known}).encode())
            elif path == f"/api/models/org/name/tree/{COMMIT}":
                tree = [{"type": "file", "path": each, "size": len(files[each]), "oid": "1" * 40} for each in files]
                self.answer(200, json.dumps(tree).encode())
            elif path == f"/org/name/resolve/{COMMIT}/{name}" and name in files:
                asked.append(f"{self.command} {name}")
                self.answer(200, files[name], ETag=f'"{name}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
            else:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")

        def answer(self, code, data, **headers):
            self.send_response(code)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_GET

    return StandIn


@pytest.mark.slow
def test_a_model_of_the_hub_is_downloaded_once_without_code_or_pickles(tmp_path):
    checkpoint = load_checkpoint(FIXTURE)
    export_checkpoint(
        tmp_path / "model", checkpoint.network, checkpoint.config, "llada2_moe", maximum_shard_bytes=300_000
    )
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    wanted = sorted(files)
    files |= {"modeling_llada2_moe.py": b"raise SystemExit('ran')", "pytorch_model.bin": b"pickle"}
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(files, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        for name, says in [
            ("org/name", f"llada2_moe {wanted}\n"),
            ("org/name@main", f"llada2_moe {wanted}\n"),
            ("org/other", "refused: org/other is no folder here, and the Hugging Face hub cannot give it"),
        ]:
            settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
            ran = subprocess.run(
                [sys.executable, "-c", SCRIPT, name],
                env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            assert ran.returncode == 0 and ran.stdout.startswith(says), ran.stdout + ran.stderr[-2000:]
    finally:
        server.shutdown()
    assert sorted(each for each in asked if each.startswith("GET")) == sorted(f"GET {name}" for name in wanted)

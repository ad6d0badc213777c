"""Corpus `hub`: pinned, streamed into shards, one column; read from a folder and from a small stand-in for the hub."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlparse

import pyarrow
import pyarrow.parquet
import pytest

from model.corpora import hub
from model.corpora.hub import HubCorpus
from model.corpora.manifest import CorpusContext, sha256_of

COMMIT = "a" * 40
ROOT = Path(__file__).resolve().parents[3]


def corpus(root, kind="pretrain", **options):
    return HubCorpus(kind, "web", options, CorpusContext(root, {}, sha256_of))


def shards_of(folder):
    return {p.name: pyarrow.input_stream(str(p), compression="zstd").read().decode() for p in sorted(folder.iterdir())}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A dataset folder of 7 rows, as a clone of a hub repository would be."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    table = pyarrow.table({"text": [f"row {n}" for n in range(7)], "other": list(range(7))})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    return folder


def test_rows_come_in_order_in_shards_of_one_column_with_the_same_bytes_each_time(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SHARD_ROWS", 3)
    found = []
    for out in (tmp_path / "one", tmp_path / "two"):
        out.mkdir()
        web = corpus(tmp_path, path="set", rows=5)
        web.fetch(web.look()[0], out)
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    lines = [f'{{"text": "row {n}"}}\n' for n in range(5)]
    assert shards_of(tmp_path / "one") == {
        "rows-00000.jsonl.zst": "".join(lines[:3]),
        "rows-00001.jsonl.zst": "".join(lines[3:]),
    }
    assert found[0] == found[1]


def test_the_identity_changes_with_rows_and_with_the_bytes_of_a_local_folder(dataset, tmp_path):
    first = corpus(tmp_path, path="set", rows=5).look()[0].identity
    assert corpus(tmp_path, path="set", rows=5).look()[0].identity == first
    assert corpus(tmp_path, path="set", rows=6).look()[0].identity != first
    (dataset / "README.md").write_text("changed")
    assert corpus(tmp_path, path="set", rows=5).look()[0].identity != first


def test_a_column_that_is_not_there_is_named_with_those_that_are(dataset, tmp_path):
    web = corpus(tmp_path, path="set", text_field="body")
    with pytest.raises(ValueError, match="no column 'body'; its columns are text, other"):
        web.fetch(web.look()[0], tmp_path)


def test_a_dataset_of_the_hub_needs_a_pinned_revision(tmp_path):
    with pytest.raises(ValueError, match=r"revision is missing.*Pin the commit"):
        corpus(tmp_path, path="org/name")


def test_a_commit_is_looked_at_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("opened a connection"))
    source = corpus(tmp_path, path="org/name", revision=COMMIT).look()[0]
    assert source.details["revision"] == COMMIT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "path is missing"),
        ({"path": "a/b", "revision": COMMIT, "rows": 0}, "rows is 0"),
        ({"trust_remote_code": True}, "unknown option"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        corpus(tmp_path, **options)


class StandIn(BaseHTTPRequestHandler):
    """The few addresses of the hub that reading one dataset asks for."""

    files: ClassVar = {"data/train.jsonl": "".join(f'{{"text": "row {n}", "n": {n}}}\n' for n in range(100)).encode()}
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self):
        path, api = urlparse(self.path).path, "/api/datasets/org/name"
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        file = path.removeprefix(f"/datasets/org/name/resolve/{COMMIT}/")
        leaf = {
            "type": "file",
            "path": "data/train.jsonl",
            "size": len(self.files["data/train.jsonl"]),
            "oid": "1" * 40,
        }
        folder = {"type": "directory", "path": "data", "oid": "2" * 40, "size": 0}
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self.answer(
                200, {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            )
        elif path in (f"{api}/tree/{COMMIT}", f"{api}/tree/{COMMIT}/data"):
            self.answer(200, [leaf] if path.endswith("data") or "recursive=true" in self.path.lower() else [folder])
        elif path == f"{api}/paths-info/{COMMIT}":
            text = asked.decode()
            self.answer(200, [leaf] if "train.jsonl" in text else [folder] if "data" in text else [])
        elif file in self.files:
            self.answer_file(self.files[file])
        else:
            self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")

    def answer_file(self, data):
        same = {"ETag": '"e"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last or len(data)) + 1]
            self.answer(206, part, Content_Range=f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}", **same)
        else:
            self.answer(200, data, **same)

    do_HEAD = do_POST = do_GET


SCRIPT = """
import sys
from pathlib import Path
from typing import ClassVar
from model.corpora.hub import HubCorpus
from model.corpora.manifest import CorpusContext, sha256_of
web = HubCorpus("pretrain", "web", {"path": sys.argv[1], "revision": "main", "rows": 7}, CorpusContext(Path(), {}, sha256_of))
try:
    source = web.look()[0]
    print(source.details["revision"])
    web.fetch(source, Path(sys.argv[2]))
except ValueError as error:
    print("refused:", error)
"""


def ask_hub(tmp_path, address, name):
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", SCRIPT, name, str(out)]
    ran = subprocess.run(command, env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, out


@pytest.mark.slow
def test_a_branch_of_the_hub_becomes_a_commit_and_its_rows_stream_in(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        printed, out = ask_hub(tmp_path, f"http://127.0.0.1:{server.server_port}", "org/name")
        assert printed.split() == [COMMIT]
        assert shards_of(out) == {"rows-00000.jsonl.zst": "".join(f'{{"text": "row {n}"}}\n' for n in range(7))}
        printed, _ = ask_hub(tmp_path, f"http://127.0.0.1:{server.server_port}", "org/absent")
        assert "refused: download.pretrain.web: cannot read org/absent" in printed
    finally:
        server.shutdown()


@pytest.mark.slow
def test_without_a_hub_the_message_says_what_to_do(tmp_path):
    printed, _ = ask_hub(tmp_path, "http://127.0.0.1:9", "org/name")
    assert "refused: download.pretrain.web: cannot read org/name" in printed and "without a network" in printed


def test_pairs_come_with_their_prompt_where_there_is_one(dataset, tmp_path):
    rows = [{"id": n, "question": f"{n}?", "good": "yes", "bad": "no"} for n in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), dataset / "train.parquet")
    names = {"chosen_field": "good", "rejected_field": "bad"}
    for prompt, fields in (("question", ("good", "bad", "question")), ("prompt", ("good", "bad"))):
        out = tmp_path / prompt
        out.mkdir()
        pairs = corpus(tmp_path, "preferences", path="set", prompt_field=prompt, **names)
        pairs.fetch(pairs.look()[0], out)
        (text,) = shards_of(out).values()
        assert [json.loads(line) for line in text.splitlines()] == [
            {name: row[name] for name in fields} for row in rows
        ]
    wrong = corpus(tmp_path, "preferences", path="set")
    with pytest.raises(ValueError, match="no column 'chosen'; its columns are id, question, good, bad"):
        wrong.fetch(wrong.look()[0], tmp_path)

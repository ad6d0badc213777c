"""Brings all text into data/raw: `python -m tasks.download`, section `download` of params.yaml.

It always looks, fetches only what is new or changed, removes what is gone, and writes data/raw/manifest.json. With nothing
changed, no byte and no time stamp changes, so everything behind it is skipped.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.corpora.manifest import (
    KINDS,
    MANIFEST_NAME,
    Corpus,
    CorpusContext,
    HashCache,
    Source,
    describe_file,
    is_intact,
    read_manifest,
    recorded_files,
    write_manifest,
)
from model.corpora.options import check_corpus_name
from model.registry import resolve
from tasks.contradictions import check_recipe
from tasks.stage import Stage, run_stage


def download(stage: Stage) -> None:
    """Make data/raw what the parameters ask for. ValueError for a wrong option, a missing file or an unreachable hub."""
    check_recipe(stage.params)
    raw, staging = stage.root / "data/raw", stage.work / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    hashes = HashCache(stage.root / ".work/download-hashes.json")
    context = CorpusContext(stage.root, stage.params, hashes.sha256)
    old = {(entry["kind"], entry["name"]): entry for entry in read_manifest(raw)["corpora"]}
    corpora = [(build_corpus(*asked, context), *asked) for asked in asked_for(stage.section)]
    looked = [(corpus.look(), corpus, *asked) for corpus, *asked in corpora]
    # All options are right and all sources there. Now everything is fetched beside data/raw before anything in it changes:
    # a kill or an error until then leaves it whole.
    entries, arrivals = [], []
    for sources, corpus, kind, name, written in looked:
        entry, fetched = _bring(corpus, sources, kind, name, written, old.get((kind, name)), raw, staging, hashes)
        entries.append(entry)
        arrivals += fetched
    _replace_files(raw, staging, arrivals)
    write_manifest(raw, entries)
    _remove_others(raw, recorded_files({"corpora": entries}) | {MANIFEST_NAME})
    hashes.save()
    num_bytes = sum(f["bytes"] for entry in entries for source in entry["sources"] for f in source["files"])
    stage.tracker.log_metrics({"data/raw_bytes": num_bytes, "data/fetched_files": len(arrivals)})


def asked_for(section: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(kind, corpus name, its options) of every corpus in the section `download`; ValueError for a section of another form."""
    for key in section:
        if key not in (*KINDS, "threads"):
            raise ValueError(f"download.{key} is unknown: the section holds {', '.join(KINDS)}.")
    for kind in KINDS:
        corpora = section.get(kind) or {}
        if kind == "benchmarks" and corpora:
            corpora = {"benchmarks": corpora}
        if not isinstance(corpora, Mapping):
            raise ValueError(f"download.{kind} is {corpora!r}: it must map the name of each corpus to its options.")
        for name, written in corpora.items():
            where = f"download.{kind}" + ("" if kind == "benchmarks" else f".{name}")
            check_corpus_name(name, where)
            if not isinstance(written, Mapping) or "source" not in written:
                raise ValueError(f"{where} is {written!r}: it needs at least `source`: toy_world, files or hub.")
            yield kind, str(name), written


def build_corpus(kind: str, name: str, written: Mapping[str, Any], context: CorpusContext) -> Corpus:
    """The corpus object behind the options a person wrote."""
    options = {key: value for key, value in written.items() if key != "source"}
    return resolve("corpus", written["source"])(kind, name, options, context)


def _bring(
    corpus: Corpus,
    sources: list[Source],
    kind: str,
    name: str,
    written: Mapping[str, Any],
    old: Mapping[str, Any] | None,
    raw: Path,
    staging: Path,
    hashes: HashCache,
) -> tuple[dict[str, Any], list[str]]:
    """The manifest entry of one corpus, and the paths below `staging` of the files that had to be fetched."""
    place = "benchmarks" if kind == "benchmarks" else f"{kind}/{name}"
    known = {source["name"]: source for source in (old or {}).get("sources", [])}
    records, fetched = [], []
    for source in sources:
        before = known.get(source.name)
        if (
            before
            and before["identity"] == source.identity
            and all(is_intact(f, raw, hashes.sha256) for f in before["files"])
        ):
            files = before["files"]
        else:
            files = _fetch(corpus, source, place, staging, hashes)
            fetched += [file["path"] for file in files]
        records.append({"name": source.name, "identity": source.identity, "files": files, "details": source.details})
    print(f"download: {place}: {len(sources)} source(s), {len(fetched)} file(s) fetched")
    for path in getattr(corpus, "left_out", []):
        print(f"download: {place}: left out {path}: hidden or of unknown kind")
    described = corpus.described()
    weight = described.pop("weight", 1.0)
    return {
        "kind": kind,
        "name": name,
        "source": written["source"],
        "weight": weight,
        "options": described,
        "sources": records,
    }, fetched


def _fetch(corpus: Corpus, source: Source, place: str, staging: Path, hashes: HashCache) -> list[dict[str, Any]]:
    """Fetch one source and add its files to the staging folder, laid out like data/raw."""
    incoming = staging / ".incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    corpus.fetch(source, incoming)
    files = []
    for path in sorted(found for found in incoming.rglob("*") if found.is_file()):
        target = staging / place / path.relative_to(incoming)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise ValueError(
                f"{place}: two sources bring a file {path.relative_to(incoming)}. Give them different names."
            )
        os.replace(path, target)
        files.append(describe_file(target, staging, hashes.sha256))
    shutil.rmtree(incoming)
    return files


def _replace_files(raw: Path, staging: Path, paths: list[str]) -> None:
    """Move fetched files into data/raw, one rename each; a file in the way of a folder, or the reverse, gives way."""
    for name in paths:
        target = raw / name
        for parent in reversed(target.relative_to(raw).parents[:-1]):
            if (raw / parent).is_file():
                (raw / parent).unlink()
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, target)
    shutil.rmtree(staging, ignore_errors=True)


def _remove_others(raw: Path, wanted: set[str]) -> None:
    """Remove every file of data/raw that the manifest does not name, and folders left empty."""
    for path in sorted(raw.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(raw).as_posix() not in wanted:
            path.unlink()


if __name__ == "__main__":
    run_stage(download, "download")

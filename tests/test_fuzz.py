"""Cases that once crashed, and a few hundred new ones; `python benchmarks/fuzz.py` runs a hundred thousand."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from fuzzing.place import use_bundle
from fuzzing.target import Tried, run_case
from fuzzing.targets import TARGETS

pytestmark = pytest.mark.xdist_group("fuzz")  # one process makes what cases begin with

CORPUS = Path(__file__).parent / "corpus"
NEW = {
    "images": 300,
    "graphs": 80,
    "manifests": 60,
    "bundles": 25,
    "tars": 25,
    "parquets": 25,
    "ledgers": 15,
    "commands": 40,
}


@pytest.fixture(autouse=True)
def _bundle(tiny_bundle_kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    use_bundle(tiny_bundle_kept)


def test_the_corpus_is_of_targets_that_there_are() -> None:
    kept = {folder.name for folder in CORPUS.iterdir()}
    assert kept
    assert kept <= set(TARGETS)


@pytest.mark.parametrize("name", sorted(folder.name for folder in CORPUS.iterdir()))
def test_what_once_crashed_is_answered_or_refused(name: str) -> None:
    tried = Tried()
    for path in sorted((CORPUS / name).glob("*")):
        run_case(TARGETS[name], path.read_bytes(), tried)
    assert sum(tried.kinds.values()) > 0
    assert not tried.findings, "\n".join(one.what for one in tried.findings.values())


@pytest.mark.parametrize("name", TARGETS)
def test_new_cases_are_answered_or_refused(name: str) -> None:
    tried = Tried()
    for case in islice(TARGETS[name].cases(7), NEW[name]):
        run_case(TARGETS[name], case, tried)
    assert not tried.findings, "\n".join(one.what for one in tried.findings.values())
    assert sum(tried.kinds.values()) == NEW[name]
    assert len(tried.kinds) > 1, "all cases came to the same"

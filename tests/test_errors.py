"""What is said where a package is missing or broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from saccade.errors import MissingDependencyError, require


def test_a_package_that_is_not_there_is_said_with_the_line_that_installs_it() -> None:
    with pytest.raises(
        MissingDependencyError, match=r"'no_such' is needed for seeing and is not installed; .*'saccade\[train\]'"
    ):
        require("no_such.part", extra="train", purpose="seeing")


def test_a_package_that_cannot_be_imported_is_said_with_its_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("raise RuntimeError('no operator nms\\nand more')")
    monkeypatch.syspath_prepend(tmp_path)
    said = r"'half_there' is needed for seeing and cannot be imported \(RuntimeError: no operator nms\); .*--force-rein"
    with pytest.raises(MissingDependencyError, match=said) as caught:
        require("half_there", extra="train", purpose="seeing")
    assert isinstance(caught.value.__cause__, RuntimeError)

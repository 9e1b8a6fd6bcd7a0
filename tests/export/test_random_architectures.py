"""Random networks and methods keep their explanations when they are exported.

`python benchmarks/random_architectures.py --count 100` tries many; these are some of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from random_architectures import check

SEEDS = (1, 5, 12)  # rollout of a transformer, functions of a place, two nested integrals


@pytest.mark.parametrize("seed", SEEDS)
def test_an_exported_network_explains_what_pytorch_explains_in_float64(seed: int, tmp_path: Path) -> None:
    row = check(seed, tmp_path)
    assert (row.verdict, row.why) == ("equal", "")
    assert row.mask_cosine > 0.9999
    assert row.mask > 0, "float32 was held against itself"

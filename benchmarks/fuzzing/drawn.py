"""Cases that hypothesis draws, and what it draws them from."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

__all__ = ["anything", "drawn", "edited", "edits", "odd_numbers", "odd_texts", "seeds"]

_AT_ONCE = 200

odd_texts = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "..",
            "/",
            "../../x",
            "/etc/passwd",
            "a/b",
            "a\0b",
            "a\nb",
            "[/red]",
            "[bold",
            "%s",
            "{0}",
            "-1",
            "nan",
            "𝄞",
        ]
    ),
    st.text(max_size=12),
    st.integers(250, 400).map(lambda length: "x" * length),
)
odd_numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, 1e-9, 1e308, -1e308]),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0]),
    st.integers(-5, 300),
    st.floats(-2, 2),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), odd_numbers, odd_texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(odd_texts, inner, max_size=3)),
    max_leaves=6,
)
edits = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 10**6),
            "do": st.sampled_from(["set", "set", "set", "delete", "add", "copy"]),
            "to": anything,
        }
    ),
    min_size=1,
    max_size=3,
)
seeds = st.integers(0, 2**32)


def drawn(strategy: st.SearchStrategy[Any], number: int) -> Iterator[bytes]:
    """Endless examples of a strategy, as JSON or as they are where they are bytes; the same for the same number."""
    while True:
        found: list[Any] = []
        _collected(strategy, number, found)
        for value in found:
            yield value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=True).encode()
        number += 1_000_003


def _collected(strategy: st.SearchStrategy[Any], number: int, found: list[Any]) -> None:
    @settings(
        max_examples=_AT_ONCE,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()


def edited(document: Any, changes: list[dict[str, Any]]) -> Any:
    """A JSON document with edits at places that are counted through it."""
    document = json.loads(json.dumps(document))
    for change in changes:
        places = list(_places(document))
        if not places:
            break
        holder, key = places[change["at"] % len(places)]
        if change["do"] == "delete":
            del holder[key]
        elif change["do"] == "add" and isinstance(holder, dict):
            holder[str(change["to"])[:50]] = change["to"]
        elif change["do"] == "add":
            holder.append(change["to"])
        elif change["do"] == "copy":
            other, there = places[random.Random(change["at"]).randrange(len(places))]
            holder[key] = json.loads(json.dumps(other[there]))
        else:
            holder[key] = change["to"]
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder and key of a document."""
    inner = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in inner:
        yield document, key
        if isinstance(value, (dict, list)):
            yield from _places(value)

"""Tables of benchmarks that documents hold: what they are made of, and that they are those of the stored rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import capacity
import interleaved
import numpy as np
import peers
import peers_table
import pytest
import scaling
import scaling_plot
from stops import Stops

ENTRY = peers_table.Entry("Grad-CAM", "Saccade", "ONNX Runtime", "returned", "Grad-CAM", "Grad-CAM")
PEER = peers_table.Entry("GradCAM", "a peer", "PyTorch", "its own", "Grad-CAM", "peer")
SLOW = peers_table.Entry("slow", "a peer", "PyTorch", "its own", extrapolated=True)
PLAIN = peers_table.Entry("the prediction alone", "", "ONNX Runtime", "")
ENTRIES = (ENTRY, PEER, SLOW, PLAIN)


def cost_of(entry: peers_table.Entry, batch: int, forwards: float, **more: object) -> dict[str, object]:
    return {
        "model": "net",
        "batch": batch,
        "key": entry.key,
        "images_per_second": 100 / forwards,
        "forwards": forwards,
        "forwards_of_fastest": 2 * forwards,
        "memory_mib": 12.4,
        **more,
    }


def cells(table: str, first: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_of_the_table_has_each_batch_size_beside_the_other() -> None:
    rows = [cost_of(ENTRY, 8, 1.25), cost_of(ENTRY, 1, 1.5), cost_of(PEER, 1, 4), cost_of(SLOW, 1, 4000)]
    rows += [cost_of(PEER, 8, 3, failed="its graph takes one image"), {**cost_of(ENTRY, 1, 9), "model": "another"}]
    table = peers_table.cost_table(ENTRIES, rows, "net")
    assert cells(table, "Grad-CAM") == [
        *("Grad-CAM", "Saccade", "ONNX Runtime", "returned"),
        *("66.7", "1.50", "3.00", "12"),
        *("80.0", "1.25", "2.50", "12"),
    ]
    assert cells(table, "GradCAM")[8] == "its graph takes one image"
    assert cells(table, "slow")[4:8] == ["≈ 0.025", "≈ 4 000", "≈ 8 000", "–"]
    assert "the prediction alone" not in table, "it was not measured"
    assert len({line.count("|") for line in table.splitlines()}) == 1, "all lines have as many cells"


def test_a_peer_that_fails_at_one_batch_size_keeps_its_row_at_the_others() -> None:
    class Net:
        title = "net"

        def images_of(self, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
            return np.zeros((count, 4, 4, 3), np.uint8)

    def explain(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[peers.Floats, peers.Floats]:
        if len(images) == 8:
            raise ValueError("one image at a time\nand much more")
        return np.zeros((len(images), 2), np.float32), np.zeros((len(images), 4, 4), np.float32)

    def broken(_: object) -> peers.Work:
        raise ImportError("not installed")

    subject: Any = Net()
    rows = [peers.Candidate(PLAIN, lambda _: peers.Work(lambda images: explain(images[:1])))]
    rows += [peers.Candidate(PEER, lambda _: peers.Work(explain)), peers.Candidate(SLOW, broken)]
    opened, failed = peers.open_rows(subject, rows, [1, 8, 2], peers.Console(quiet=True))
    plain, peer = opened
    assert sorted(plain.rows) == [1, 2, 8]
    assert plain.failed == {}
    assert sorted(peer.rows) == [1, 2]
    assert peer.failed == {8: "ValueError: one image at a time"}
    assert failed == {SLOW.key: "ImportError: not installed"}


def test_what_is_said_in_words_follows_the_numbers() -> None:
    cheaper = [cost_of(ENTRY, 1, 1.5), cost_of(PEER, 1, 4)]
    said = "\n".join(peers_table.verdict(ENTRIES, cheaper, {}))
    assert "Grad-CAM takes 3.00, less than GradCAM of a peer, 8.00" in said
    dearer = [cost_of(ENTRY, 1, 4), cost_of(PEER, 1, 1.5)]
    said = "\n".join(peers_table.verdict(ENTRIES, dearer, {}))
    assert "Grad-CAM takes 8.00, more than GradCAM of a peer, 3.00" in said
    assert "1 peer is cheaper" in said
    value = {"value": 0.8, "low": 0.7, "high": 0.9}
    better = {"value": 0.01, "low": 0.005, "high": 0.02}
    faithful = {ENTRY.key: {"insertion-deletion": value}, PEER.key: {"insertion-deletion": value}}
    assert not any("faithful" in line for line in peers_table.verdict(ENTRIES, cheaper, faithful))
    faithful[PEER.key]["against_first"] = better
    assert any("is more faithful" in line for line in peers_table.verdict(ENTRIES, cheaper, faithful))


def test_faithfulness_is_sorted_and_has_its_intervals() -> None:
    def row(value: float) -> dict[str, dict[str, float]]:
        return {"insertion-deletion": {"value": value, "low": value - 0.1, "high": value + 0.1}}

    table = peers_table.faithfulness_table(ENTRIES, {ENTRY.key: row(0.5), PEER.key: row(0.75)})
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["GradCAM", "Grad-CAM"]
    assert "0.750 (0.650–0.850)" in table


def test_rounds_are_held_against_the_forward_next_to_them() -> None:
    """The machine slows down tenfold in the middle; the ratios do not."""
    slow = interleaved.Row("plain slow", "slow", lambda: 1.0, None, 0, [0.2, 2.0], [0.2, 2.0], [0, 1])
    fast = interleaved.Row("plain fast", "fast", lambda: 1.0, None, 0, [0.1, 1.0], [0.1, 1.0], [0, 1])
    row = interleaved.Row("row", "slow", lambda: 1.0, lambda: None, 0, [0.6, 6.0], [0.2, 2.0], [0, 1])
    found = interleaved.summary([slow, fast, row])["row"]
    assert found["forwards"] == pytest.approx(3)
    assert found["forwards_of_fastest"] == pytest.approx(6)
    assert found["fastest"] == "fast"


def test_a_part_counts_as_often_as_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(interleaved.time, "perf_counter", lambda: clock[0])

    def takes(seconds: float, answer: float) -> float:
        clock[0] += seconds
        return answer

    row = interleaved.Row("part", "engine", lambda: takes(0.5, 10), lambda: takes(0.25, 0), forwards=1)
    row.measure(0, plain_first=True)
    row.measure(1, plain_first=False)
    assert row.seconds == pytest.approx([0.5 * 10 + 0.25] * 2)
    assert row.plain_seconds == pytest.approx([0.25] * 2)


def test_capacity_is_arithmetic() -> None:
    constants = capacity.Constants("net", 20, 2, 0.9, 2.0, 300, 25, 50_000, 4000)
    need = capacity.need_of(constants, 1e9, 64)
    assert need.core_hours == pytest.approx(1e9 / 10 / 3600)
    assert need.hours == pytest.approx(need.core_hours / 64)
    assert need.cores_for_a_day == int(np.ceil(need.core_hours / 24))
    assert (need.shards, need.tar_files) == (500_000, 1_000_000)
    assert need.shards_per_hour * need.hours == pytest.approx(500_000)
    assert constants.memory(8) == 500
    assert constants.with_gpus(1000, 2, 64) == 2000
    assert constants.with_gpus(1000, 8, 4) == 2000, "four cores decode no more"
    table = capacity.need_table([need])
    assert "1,000,000,000" in table
    assert "50 TB" in table
    assert "140 GB" in table


def test_laws_hold_for_what_follows_them() -> None:
    batch = [{"series": "net", "x": x, "seconds": 0.1 * x, "forwards": 1.1 * x} for x in (1, 2, 4)]
    assert "+0%" in scaling_plot.PANELS["batch"].said(batch)
    steps = [{"series": "net", "x": x, "seconds": x, "forwards": 1 + 2 * x} for x in (4, 8)]
    assert "+0%" in scaling_plot.PANELS["steps"].said(steps)
    steps[1]["forwards"] *= 2
    assert "+100% from it, at 8" in scaling_plot.PANELS["steps"].said(steps)


def test_the_pages_are_those_of_the_stored_rows() -> None:
    assert peers.page(peers.Store(peers.RESULTS, dry=True)) in peers.PAGE.read_text(encoding="utf-8")
    stored = json.loads(scaling.RESULTS.read_text(encoding="utf-8"))
    assert scaling.page(stored) in scaling.PAGE.read_text(encoding="utf-8")


def test_capacity_without_constants_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--capacity", "--out", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit) as stop:
        scaling.main()
    assert stop.value.code == 2
    assert "has no constants yet" in capsys.readouterr().err


def test_time_in_which_cores_stood_is_counted_once() -> None:
    rng = np.random.default_rng(3)
    times = [[(int(at), int(at) + int(rng.integers(1, 5))) for at in np.arange(0, 90, 6) + core] for core in range(3)]
    stops = Stops(times=times)
    for begin, end in [(0, 100), (10, 11), (37, 62), (95, 95)]:
        for cores in (1, 2, 3):
            counts = [sum(any(a <= at < b for a, b in core) for core in times) for at in range(begin, end)]
            assert stops.within(begin, end, cores=cores) == sum(count >= cores for count in counts)

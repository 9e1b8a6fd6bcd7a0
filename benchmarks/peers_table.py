"""The rows of the comparison with the peers, as a table in Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

__all__ = ["Entry", "cost_table", "draw", "faithfulness_table", "verdict"]

_INK, _PALE = "#22262b", "#d9dce0"
# Okabe and Ito's colours, which people tell apart whatever their sight
_LOOKS = {"Saccade": ("#0072b2", "o"), "peer": ("#d55e00", "s"), "Saccade in PyTorch": ("#56b4e9", "^")}


@dataclass(frozen=True)
class Entry:
    """What is said of a row beside its numbers.

    Attributes:
        name: of the explainer.
        package: whose it is.
        engine: what runs it.
        prediction: how its user comes by the prediction, whose cost is in the row.
        family: rows of the same family compute the same; "" for none.
        short: label in the picture; "" leaves it out.
        extrapolated: only a part of the work was timed.
    """

    name: str
    package: str
    engine: str
    prediction: str
    family: str = ""
    short: str = ""
    extrapolated: bool = False

    @property
    def key(self) -> str:
        """Name, package and engine: unique."""
        return f"{self.name} | {self.package} | {self.engine}"

    @property
    def kind(self) -> str:
        """Whose row: "plain", "Saccade", "Saccade in PyTorch" or "peer"."""
        if not self.package:
            return "plain"
        if self.package != "Saccade":
            return "peer"
        return "Saccade in PyTorch" if self.engine.startswith("PyTorch") else "Saccade"


def cost_table(entries: Sequence[Entry], rows: Sequence[dict[str, Any]], model: str) -> str:
    """Throughput, cost and memory of one model's rows, in Markdown; batch sizes side by side."""
    mine = {(row["key"], row["batch"]): row for row in rows if row["model"] == model}
    batches = sorted({batch for _, batch in mine})
    head = ["explainer", "of", "runs in", "prediction"]
    for batch in batches:
        head += [f"images/s, batch {batch}", "forwards", "of the fastest", "MiB"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|---|" + "---:|" * (len(head) - 4)]
    for entry in entries:
        if not any((entry.key, batch) in mine for batch in batches):
            continue
        cells = [entry.name, entry.package or "–", entry.engine, entry.prediction or "–"]
        for batch in batches:
            row = mine.get((entry.key, batch))
            if row is None or row.get("failed"):
                cells += [row["failed"] if row else "–", "", "", ""]
                continue
            about = "≈ " if entry.extrapolated else ""
            memory = row.get("memory_mib")
            cells += [
                f"{about}{_three(row['images_per_second'])}",
                f"{about}{_three(row['forwards'])}",
                f"{about}{_three(row['forwards_of_fastest'])}",
                "–" if memory is None or entry.extrapolated else f"{memory:.0f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def faithfulness_table(entries: Sequence[Entry], rows: dict[str, dict[str, Any]]) -> str:
    """Pointing, insertion and deletion on the planted scenes, in Markdown, the most faithful first."""
    lines = [
        "| explainer | of | pointing, % | insertion | deletion | insertion − deletion | against LTX |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    named = [(entry, rows[entry.key]) for entry in entries if entry.key in rows]
    for entry, row in sorted(named, key=lambda one: -one[1]["insertion-deletion"]["value"]):
        against = row.get("against_first")
        cells = [
            entry.name,
            entry.package,
            _interval(row.get("pointing-box"), 1),
            _interval(row.get("insertion"), 3),
            _interval(row.get("deletion"), 3),
            _interval(row["insertion-deletion"], 3),
            f"{_signed(against['value'])} ({_signed(against['low'])} to {_signed(against['high'])})"
            if against
            else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(entries: Sequence[Entry], rows: Sequence[dict[str, Any]], faithful: dict[str, dict[str, Any]]) -> list[str]:
    """In sentences: what of the same family is cheaper, and which peers are cheaper or more faithful than Saccade."""
    found = []
    by_key = {(row["key"], row["model"], row["batch"]): row for row in rows if not row.get("failed")}
    for model, batch in sorted({(row["model"], row["batch"]) for row in rows}):
        own = [one for one in entries if one.kind == "Saccade" and (one.key, model, batch) in by_key]
        peers = [one for one in entries if one.kind == "peer" and (one.key, model, batch) in by_key]
        if not own or not peers:
            continue
        cost = {one.key: by_key[one.key, model, batch]["forwards_of_fastest"] for one in (*own, *peers)}
        cheapest = min(own, key=lambda one: cost[one.key])
        best = min(peers, key=lambda one: cost[one.key])
        cheaper = [one for one in peers if cost[one.key] < cost[cheapest.key]]
        found.append(
            f"{model}, batch {batch}: the cheapest of Saccade's is {cheapest.name} in {cheapest.engine} with "
            f"{cost[cheapest.key]:.2f} forwards of the fastest engine, the cheapest peer {best.name} of {best.package} "
            f"with {cost[best.key]:.2f}" + (f"; {_number(len(cheaper))} cheaper." if cheaper else ".")
        )
        for family in sorted({one.family for one in own if one.family}):
            same = [one for one in peers if one.family == family]
            for one in (one for one in own if one.family == family and same):
                least = min(same, key=lambda rival: cost[rival.key])
                word = "less than" if cost[one.key] < cost[least.key] else "MORE than"
                found.append(
                    f"{model}, batch {batch}, the same method: {one.name} takes {cost[one.key]:.2f}, {word} "
                    f"{least.name} of {least.package}, {cost[least.key]:.2f}."
                )
    if faithful:
        named = {one.key: one for one in entries if one.key in faithful and one.kind in ("Saccade", "peer")}
        first = next((one for one in named.values() if one.kind == "Saccade"), None)
        for key, one in named.items():
            against = faithful[key].get("against_first")
            if first is not None and one.kind == "peer" and against and against["value"] > 0:
                sure = "surely" if against["low"] > 0 else "though not surely"
                found.append(f"{one.name} of {one.package} is {sure} more faithful than {first.name} on the scenes.")
    return found


def draw(
    entries: Sequence[Entry],
    rows: Sequence[dict[str, Any]],
    faithful: dict[str, dict[str, Any]],
    model: str,
    batch: int,
) -> bytes:
    """Cost against faithfulness, a point for each explainer with the 95 % interval of its faithfulness.

    Returns:
        A PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(9, 5), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    costs = {row["key"]: row["forwards_of_fastest"] for row in rows if (row["model"], row["batch"]) == (model, batch)}
    points = [one for one in entries if one.short and one.key in costs and one.key in faithful]
    for kind, (colour, marker) in _LOOKS.items():
        own = [one for one in points if one.kind == kind]
        if not own:
            continue
        values = [faithful[one.key]["insertion-deletion"] for one in own]
        y = [value["value"] for value in values]
        axes.errorbar(
            [costs[one.key] for one in own],
            y,
            yerr=[[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]],
            fmt=marker,
            color=colour,
            ecolor=colour,
            elinewidth=1,
            capsize=2,
            markersize=8,
            label=kind,
        )
    for one, place in zip(points, _places([(costs[p.key], _value(faithful, p)) for p in points]), strict=True):
        axes.annotate(
            one.short,
            (costs[one.key], _value(faithful, one)),
            textcoords="offset points",
            xytext=(9, place),
            fontsize=9,
            color=_LOOKS[one.kind][0],
            va="center",
        )
    axes.axvline(1, color=_INK, linewidth=1, linestyle=":")
    axes.set_xscale("log")
    right = max([costs[one.key] for one in points], default=10)
    axes.set_xlim(0.8, right * 6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(
        f"cost of prediction and explanation, in forwards of the fastest engine ({model}, batch {batch}); "
        "dotted: the prediction alone",
        color=_INK,
    )
    axes.set_ylabel("insertion − deletion, planted scenes, 95 % interval", color=_INK)
    axes.set_title("Cost against faithfulness: up and to the left is better", color=_INK, fontsize=11, loc="left")
    axes.grid(True, color=_PALE, linewidth=0.7)
    axes.tick_params(colors=_INK, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="lower left")
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _value(faithful: dict[str, dict[str, Any]], entry: Entry) -> float:
    return float(faithful[entry.key]["insertion-deletion"]["value"])


def _places(points: Sequence[tuple[float, float]]) -> list[float]:
    """How far above its point a label stands, so that labels of points near one another do not overlap."""
    import math

    taken: list[tuple[float, float]] = []
    shifts = []
    spread = max((y for _, y in points), default=1) - min((y for _, y in points), default=0) or 1
    for x, y in points:
        for shift in (0, 12, -12, 24, -24, 36, -36, 48, -48):
            height = y / spread * 300 + shift  # points on paper, roughly
            if all(abs(math.log10(x / other)) > 0.55 or abs(height - at) > 11 for other, at in taken):
                break
        taken.append((x, height))
        shifts.append(float(shift))
    return shifts


def _number(count: int) -> str:
    return "1 peer is" if count == 1 else f"{count} peers are"


def _three(value: float) -> str:
    """Three significant digits, and never an exponent."""
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _interval(found: dict[str, Any] | None, digits: int) -> str:
    if found is None:
        return "–"
    text = f"{found['value']:.{digits}f} ({found['low']:.{digits}f}–{found['high']:.{digits}f})"
    return text.replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")

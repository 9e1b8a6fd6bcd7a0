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
        trained: it has weights of its own, which were trained for the model.
    """

    name: str
    package: str
    engine: str
    prediction: str
    family: str = ""
    short: str = ""
    extrapolated: bool = False
    trained: bool = False

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
        untrained = [one for one in own if not one.trained]
        if cheapest.trained and untrained:
            least = min(untrained, key=lambda one: cost[one.key])
            cheaper = [one for one in peers if cost[one.key] < cost[least.key]]
            found.append(
                f"{model}, batch {batch}, nothing trained, as with the peers: {least.name} in {least.engine} takes "
                f"{cost[least.key]:.2f}; " + (f"{_number(len(cheaper))} cheaper." if cheaper else "no peer is cheaper.")
            )
        for family in sorted({one.family for one in own if one.family}):
            same = [one for one in peers if one.family == family]
            for one in (one for one in own if one.family == family and same):
                least = min(same, key=lambda rival: cost[rival.key])
                word = "less than" if cost[one.key] < cost[least.key] else "more than"
                found.append(
                    f"{model}, batch {batch}, the same method: {one.name} takes {cost[one.key]:.2f}, {word} "
                    f"{least.name} of {least.package}, {cost[least.key]:.2f}."
                )
    if faithful:
        named = {one.key: one for one in entries if one.key in faithful and one.kind in ("Saccade", "peer")}
        first = next((one for one in named.values() if one.kind == "Saccade"), None)
        for key, one in named.items():
            against = faithful[key].get("against_first")
            if first is None or one.kind != "peer" or not against or against["high"] < 0:
                continue
            than = f"{first.name} on the scenes"
            if against["low"] > 0:
                found.append(f"{one.name} of {one.package} is more faithful than {than}.")
            else:
                found.append(f"{one.name} of {one.package} is as faithful as {than}: the interval holds 0.")
    return found


def draw(
    entries: Sequence[Entry], rows: Sequence[dict[str, Any]], faithful: dict[str, dict[str, Any]], model: str
) -> bytes:
    """Explainers from cheap to dear, each with its cost at every batch size and beside it its faithfulness with the
    95 % interval.

    Returns:
        A PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    costs = {
        (row["key"], row["batch"]): row["forwards_of_fastest"]
        for row in rows
        if row["model"] == model and not row.get("failed")
    }
    batches = sorted({batch for _, batch in costs})[:2]
    shown = [one for one in entries if one.short and one.key in faithful and (one.key, *batches[:1]) in costs]
    shown.sort(key=lambda one: -costs[one.key, batches[0]])
    figure = Figure(figsize=(10, 1.3 + 0.34 * max(4, len(shown))), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for place, one in enumerate(shown):
        colour, marker = _LOOKS[one.kind]
        for batch in batches:
            if (cost := costs.get((one.key, batch))) is not None:
                filled = colour if batch == batches[0] else "white"
                left.plot(cost, place, marker, color=colour, markerfacecolor=filled, markersize=8, zorder=3)
        found = faithful[one.key]["insertion-deletion"]
        margins = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
        right.errorbar(found["value"], place, xerr=margins, fmt=marker, color=colour, capsize=3, markersize=8)
    left.set_yticks(range(len(shown)), [one.short for one in shown])
    for label, one in zip(left.get_yticklabels(), shown, strict=True):
        label.set_color(_LOOKS[one.kind][0])
    left.axvline(1, color=_INK, linewidth=1, linestyle=":")
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator())
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("forwards of the fastest engine; dotted: prediction alone", color=_INK)
    left.set_title(f"Cost of prediction and explanation, {model}", color=_INK, fontsize=11, loc="left")
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.set_xlabel("insertion − deletion, 95 % interval; more is better", color=_INK)
    right.set_title("Faithfulness, planted scenes", color=_INK, fontsize=11, loc="left")
    for axes in (left, right):
        axes.grid(True, color=_PALE, linewidth=0.7)
        axes.tick_params(axis="x", colors=_INK, which="both")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    legend = [
        Line2D([], [], color=_LOOKS[kind][0], marker=_LOOKS[kind][1], linestyle="", markersize=8, label=kind)
        for kind in dict.fromkeys(one.kind for one in reversed(shown))
    ]
    if len(batches) > 1:
        legend += [
            Line2D([], [], color=_INK, marker="o", linestyle="", markersize=8, label=f"batch {batches[0]}"),
            Line2D(
                *([], []),
                color=_INK,
                marker="o",
                markerfacecolor="white",
                linestyle="",
                markersize=8,
                label=f"batch {batches[1]}",
            ),
        ]
    right.legend(handles=legend, frameon=False, fontsize=9, labelcolor=_INK, loc="lower right")
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


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

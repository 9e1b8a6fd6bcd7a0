"""Saccade beside what one would take instead: the same model, photographs and threads, in one interleaved run.

    python benchmarks/peers.py --write                 all of it, and docs/peers.md with its picture
    python benchmarks/peers.py --quick --dry           two rounds of the small scenes model, to see that all rows run
    python benchmarks/peers.py --only-faithfulness --scenes 500
    python benchmarks/peers.py --only-cost --models --write      measures nothing: the page, of what is stored
    python benchmarks/peers.py --models ResNet-50 --batch-sizes 8 --rounds 5 --rows Grad-CAM

The peers are installed by `pip install 'saccade[peers]'` and, for ReciproCAM, `pip install --no-deps openvino_xai`,
which asks for an OpenVINO of 2024 and runs with today's. A peer that is missing is left out, with the reason. Every
round runs all rows, each next to the plain forward of its engine; cost is the median of the rounds' ratios. Rows that
take long sit out some rounds; of integrated gradients by Captum and of extremal perturbations a part is timed. Graphs
are compiled in the first run, in about ten minutes, and kept in build/peers. Rows go into benchmarks/results/peers.json
as they come; those that are not measured stay.
"""

from __future__ import annotations

import argparse
import datetime
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import peer_rows
import torch
from interleaved import Row, interleave, settled_mib, summary
from own_rows import plain_forwards
from peer_candidates import CANDIDATES, ENGINES, ENTRIES, PLAIN, RANDOM, Candidate
from peers_table import Entry, cost_table, draw, faithfulness_table, verdict
from rich.console import Console
from subjects import SUBJECTS, Subject, Work

from saccade.accel.machine import core_count, machine
from saccade.accel.memory import peak_mib
from saccade.contracts import Floats, Uint8
from saccade.evaluate.baselines import random_masks
from saccade.evaluate.metrics import Sample, difference, estimate, make_metrics, measure
from saccade.evaluate.scenes import SceneBatch, SceneSource

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
PAGE = ROOT / "docs" / "peers.md"
PICTURE = ROOT / "docs" / "images" / "peers.png"
EXTREMAL = RESULTS.with_name("inr_scenes.json")
GRAPHS = ROOT / "build" / "peers"
BEGIN, END = "<!-- peers.py writes from here -->", "<!-- to here -->"
FIRST = 20_000  # scenes that no setting was chosen on
METRICS = ("pointing-box", "insertion", "deletion", "insertion-deletion")
PEERS = ("captum", "grad-cam", "torchcam", "openvino_xai", "torch", "torchvision", "timm", "onnxruntime", "openvino")


class Store:
    """Rows as they come, in a file that is whole at every moment."""

    def __init__(self, path: Path, dry: bool) -> None:
        self.path, self.dry = path, dry
        found = self._read()
        self.cost: list[dict[str, Any]] = found.get("cost", [])
        self.faithfulness: dict[str, Any] = found.get("faithfulness", {})

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Put rows of cost in the place of older ones."""
        self.cost = list(({_key(row): row for row in self.cost} | {_key(row): row for row in rows}).values())
        self.write("cost")

    def write(self, part: str) -> None:
        """Put "cost" or "faithfulness" into the file and leave the other as it is there."""
        if self.dry:
            return
        content = self._read() | {part: getattr(self, part)}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        return found


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["batch"], row["key"]


def measured_on(threads: int) -> dict[str, Any]:
    """Machine, date and versions, for every row."""
    versions = {}
    for package in PEERS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"machine": machine(), "versions": versions, "threads": threads, "date": today}


@dataclass
class Opened:
    """A row that is warm: of each batch size its memory, and its row of timings, with the first of them where the work
    is long; or why there is none.
    """

    candidate: Candidate
    work: Work
    memory: dict[int, float | None]
    rows: dict[int, Row]
    failed: dict[int, str]


def open_rows(
    subject: Subject, candidates: Sequence[Candidate], batches: Sequence[int], console: Console
) -> tuple[list[Opened], dict[str, str]]:
    """Make all rows of a model and run each once at every batch size; and why the others are missing."""
    opened, failed = [], {}
    for candidate in candidates:
        if candidate.entry.engine in ("ONNX Runtime", "OpenVINO") and candidate.entry.kind == "Saccade":
            console.print(f"{subject.title}: compiling {candidate.entry.name}", markup=False)
            _attempt(lambda candidate=candidate: candidate.make(subject), candidate, failed, console)  # type: ignore[misc]
    alone: dict[str, Work] = {}
    for candidate in (one for one in candidates if one.entry.key not in failed):
        console.print(f"{subject.title}: opening {candidate.entry.key}", markup=False)
        found = _attempt(
            lambda candidate=candidate: _opened(subject, candidate, batches, alone),  # type: ignore[misc]
            candidate,
            failed,
            console,
        )
        if found is not None:
            opened.append(found)
            for batch, why in found.failed.items():
                console.print(f"  left out at batch {batch}: {why}", markup=False)
            if candidate.entry.kind == "plain":
                alone[candidate.entry.engine] = found.work
    return opened, failed


def _attempt(do: Callable[[], Any], candidate: Candidate, failed: dict[str, str], console: Console) -> Any:
    try:
        return do()
    except Exception as error:  # whatever another package raises is the row's result
        failed[candidate.entry.key] = _reason(error)
        console.print(f"  left out: {failed[candidate.entry.key]}", markup=False)
        return None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def _opened(subject: Subject, candidate: Candidate, batches: Sequence[int], alone: dict[str, Work]) -> Opened:
    before = settled_mib()
    work = candidate.make(subject)
    if work.part is None:
        work.explain(subject.images_of(1))  # opens sessions and compiles
    memory: dict[int, float | None] = {}
    rows: dict[int, Row] = {}
    failed: dict[int, str] = {}
    for batch in batches:
        images, entry = subject.images_of(batch), candidate.entry
        row = rows[batch] = Row(entry.key, entry.engine, _call(work, images), forwards=work.forwards)
        if entry.kind != "plain" and entry.engine in alone:
            row.plain = _call(alone[entry.engine], images)
        settled_mib()
        try:
            row.measure(0, plain_first=True)
        except Exception as error:  # of one batch size; the others are still worth a row
            failed[batch] = _reason(error)
            del rows[batch]
            continue
        row.warmed()
        peak = peak_mib()
        memory[batch] = None if before is None or peak is None else max(0.0, peak - before) + work.weights_mib
    return Opened(candidate, work, memory, rows, failed)


def _call(work: Work, images: Uint8) -> Callable[[], float]:
    if work.part is not None:
        part = work.part
        return lambda: part(images)

    def whole() -> float:
        work.explain(images)
        return 1.0

    return whole


def bench(subject: Subject, arguments: argparse.Namespace, store: Store, console: Console) -> None:
    """Cost of all rows of a model, batch size by batch size."""
    forwards = plain_forwards(subject)
    plain = [Candidate(PLAIN[engine], _alone(forwards[engine], engine, subject)) for engine in ENGINES]
    wanted = [one for one in CANDIDATES if subject.title in one.models and _chosen(one.entry, arguments.rows)]
    opened, failed = open_rows(subject, [*plain, *wanted], arguments.batch_sizes, console)
    about = measured_on(arguments.threads)
    for batch in arguments.batch_sizes:
        rows = [one.rows[batch] for one in opened if batch in one.rows]
        left_out = failed | {one.candidate.entry.key: one.failed[batch] for one in opened if batch in one.failed}

        def keep(
            done: int, rows: Sequence[Row] = rows, batch: int = batch, left_out: dict[str, str] = left_out
        ) -> None:
            console.print(f"{subject.title}, batch {batch}: round {done}", markup=False)
            found = summary(rows)
            written = [
                {
                    "model": subject.title,
                    "batch": batch,
                    "key": one.candidate.entry.key,
                    "images_per_second": batch / found[one.candidate.entry.key]["seconds"],
                    **found[one.candidate.entry.key],
                    "memory_mib": one.memory[batch],
                    **about,
                }
                for one in opened
                if one.candidate.entry.key in found
            ]
            missing = [
                {"model": subject.title, "batch": batch, "key": key, "failed": why, **about}
                for key, why in left_out.items()
            ]
            store.add([*written, *missing])

        interleave(rows, arguments.seconds, arguments.rounds, keep)


def _alone(
    open_forward: Callable[[], Callable[[Uint8], Floats]], engine: str, subject: Subject
) -> Callable[[Subject], Work]:
    def make(_: Subject) -> Work:
        forward = open_forward()
        weights = subject.weights_mib if engine.startswith("PyTorch") else 0.0
        return Work(lambda images: (forward(images), np.empty(0, np.float32)), weights_mib=weights)

    return make


def _chosen(entry: Entry, wanted: Sequence[str] | None) -> bool:
    return not wanted or any(part.lower() in entry.key.lower() for part in wanted)


def faithfulness(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    """Every explainer's masks on the same planted scenes, watched by the same classifier."""
    subject = SUBJECTS["scenes ResNet"](arguments.graphs, arguments.threads)
    predict = plain_forwards(subject)["ONNX Runtime"]()
    scenes = SceneSource("test").batch(range(FIRST, FIRST + arguments.scenes))
    metrics = make_metrics(METRICS)
    told = store.faithfulness.get("scenes"), store.faithfulness.get("first")
    if told != (arguments.scenes, FIRST):
        store.faithfulness = {}
    store.faithfulness |= {"scenes": arguments.scenes, "first": FIRST, "model": subject.title}
    store.faithfulness |= measured_on(arguments.threads)
    kept = store.faithfulness.setdefault("rows", {})
    first: dict[str, Any] = {}
    named = [one for one in CANDIDATES if one.entry.short and subject.title in one.models]
    for candidate in (one for one in named if one is named[0] or _chosen(one.entry, arguments.rows)):
        entry = candidate.entry
        if entry.package == peer_rows.FONG:
            rows = _known_extremal(arguments.scenes)
        else:
            console.print(f"faithfulness: {entry.key}", markup=False)
            made = _attempt(lambda candidate=candidate: candidate.make(subject), candidate, {}, console)  # type: ignore[misc]
            rows = {} if made is None else measure(metrics, _samples(made, scenes.images, scenes, predict), predict)
            kept.pop(entry.key, None)  # an older row, should there be none now
        first = first or rows
        _keep(kept, entry.key, metrics, rows, first)
        store.write("faithfulness")
    noise = random_masks()
    blind = Work(lambda images: (predict(images), noise(images, np.zeros(len(images), np.int64))))
    _keep(kept, RANDOM.key, metrics, measure(metrics, _samples(blind, scenes.images, scenes, predict), predict), first)
    store.write("faithfulness")


def _keep(kept: dict[str, Any], key: str, metrics: Sequence[Any], rows: dict[str, Any], first: dict[str, Any]) -> None:
    if not rows:
        return
    found: dict[str, Any] = {one.name: asdict(estimate(one, rows[one.name])) for one in metrics if one.name in rows}
    main = metrics[-1]
    if first is not rows:
        found["against_first"] = asdict(difference(main, rows[main.name], first[main.name]))
    kept[key] = found


def _samples(work: Work, images: Uint8, scenes: SceneBatch, predict: Callable[[Uint8], Floats]) -> Iterator[Sample]:
    for start in range(0, len(images), 8):
        part = slice(start, start + 8)
        targets = predict(images[part]).argmax(1)
        masks = work.explain(images[part])[1]
        for image, mask, target, evidence in zip(images[part], masks, targets, scenes.evidence[part], strict=True):
            yield Sample(image, mask, int(target), evidence)


def _known_extremal(scenes: int) -> dict[str, Any]:
    """Of `benchmarks/inr.py`, which takes a minute for each scene; nothing where it has not measured all of them."""
    known = json.loads(EXTREMAL.read_text()) if EXTREMAL.exists() else {}
    rows = known.get(f"resnet {peer_rows.EXTREMAL!r}", {})
    wanted = [str(index) for index in range(FIRST, FIRST + scenes)]
    if not all(index in rows for index in wanted):
        return {}
    return {METRICS[-1]: np.array([rows[index][METRICS[-1]] for index in wanted])}


def page(store: Store) -> str:
    """What docs/peers.md says between its markers."""
    rows: list[dict[str, Any]] = []
    text = ["![Cost and faithfulness of the explainers](images/peers.png)"]
    for model in ("ResNet-50", "ViT-B/16 (timm)"):
        stored = [row for row in store.cost if row["model"] == model]
        if stored:
            newest = max(stored, key=lambda row: row["date"])
            alike = [
                row for row in stored if all(row[name] == newest[name] for name in ("threads", "machine", "versions"))
            ]
            dates = ", ".join(sorted({row["date"] for row in alike}))
            text += [f"### {model}, 224 px, {dates}", _measured_with(newest), cost_table(ENTRIES, alike, model)]
            rows += alike
    measured = store.faithfulness.get("rows", {})
    if measured:
        said = f"{store.faithfulness['scenes']} planted scenes, 95 % intervals, {store.faithfulness['date']}"
        text += [
            f"### Faithfulness, {said}",
            faithfulness_table([*ENTRIES, RANDOM], measured),
        ]
    text += ["### In words", "\n".join(f"- {sentence}" for sentence in verdict(ENTRIES, rows, measured))]
    return "\n\n".join(text)


def _measured_with(row: dict[str, Any]) -> str:
    found = row["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    return (
        f"{found['processor']}, {found['platform']}, {found['cores']} cores, {row['threads']} threads; "
        f"Python {found['python']}, {versions}."
    )


def write_page(store: Store) -> None:
    """Put the tables between the page's markers, and draw the picture."""
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{page(store)}\n\n{END}{after}")
    PICTURE.write_bytes(draw(ENTRIES, store.cost, store.faithfulness.get("rows", {}), "ResNet-50"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=list(SUBJECTS), default=["ResNet-50", "ViT-B/16"])
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--rows", nargs="*", help="only rows whose name, package or engine has one of these in it")
    parser.add_argument("--seconds", type=float, default=45, help="of rounds, for each model and batch size")
    parser.add_argument("--rounds", type=int, help="so many, however long they take")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--threads", type=int, default=core_count())
    parser.add_argument("--graphs", type=Path, default=GRAPHS, help="where compiled graphs are kept")
    parser.add_argument("--only-faithfulness", action="store_true")
    parser.add_argument("--only-cost", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the scenes model, two rounds, 16 scenes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--write", action="store_true", help="docs/peers.md and its picture, from all that is stored")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.rounds, arguments.scenes = ["scenes ResNet"], 2, 16
    console = Console(stderr=True)
    warnings.filterwarnings("ignore", category=UserWarning)  # of packages that are not ours
    torch.set_num_threads(arguments.threads)
    store = Store(arguments.out, arguments.dry)
    if not arguments.only_cost:
        faithfulness(arguments, store, console)
    if not arguments.only_faithfulness:
        for model in arguments.models:
            bench(SUBJECTS[model](arguments.graphs, arguments.threads), arguments, store, console)
    if arguments.write:
        write_page(store)
    for model in dict.fromkeys(row["model"] for row in store.cost):
        Console().print(f"\n{model}\n{cost_table(ENTRIES, store.cost, model)}", markup=False, soft_wrap=True)
    if store.faithfulness:
        Console().print(
            "\n" + faithfulness_table([*ENTRIES, RANDOM], store.faithfulness["rows"]), markup=False, soft_wrap=True
        )


if __name__ == "__main__":
    main()

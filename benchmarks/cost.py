"""What prediction and explanation by trained explainers cost in forwards, on ONNX Runtime CPU: the scenes models at
96 px, ResNet-50 and ViT-B/16 at 224 px; LTX (shared trunk, own backbone, any class asked about one and two), and masks
of four areas.

    python benchmarks/cost.py
    python benchmarks/cost.py --models ViT-B/16 --seconds 5

ResNet-50 and ViT-B/16 have random weights of a sensible scale, on which the cost does not depend. Each bundle is
exported, gated and measured as `saccade bench` does. Prints a table and writes benchmarks/results/cost.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from zoo import build, photographs

from saccade.accel.bench import bench_engine
from saccade.accel.bundle import Bundle
from saccade.accel.engines import open_engine
from saccade.accel.machine import machine
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import CheckpointRecord
from saccade.methods.explainee import Explainee, load_explainee
from saccade.methods.inr.amortized_config import AmortizedConfig
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.trained import method_of
from saccade.methods.training.config import TrainingConfig

RESULTS = Path(__file__).parent / "results"
MODELS: dict[str, Callable[[], Explainee]] = {
    "scenes ResNet, 96 px": lambda: load_explainee("python:saccade.evaluate.scenes_models:resnet"),
    "scenes ViT, 96 px": lambda: load_explainee("python:saccade.evaluate.scenes_models:vit"),
    "ResNet-50, 224 px": lambda: build("ResNet-50"),
    "ViT-B/16, 224 px": lambda: build("ViT-B/16 (timm)"),
}


@dataclass(frozen=True)
class Case:
    """A kind of explainer, how many classes it is asked about, and what it may cost."""

    title: str
    config: TrainingConfig
    bar: float
    targets: int = 1


CASES = (
    Case("shared trunk", LTXConfig(), 1.05),
    Case("any class", LTXConfig(class_conditional=True), 1.05),
    Case("any class, two at once", LTXConfig(class_conditional=True), 1.10, 2),
    Case("own backbone", LTXConfig(form="own"), 2.1),
    Case("INR, four areas", AmortizedConfig(), 1.15),
)


def export(explainee: Explainee, config: TrainingConfig, out: Path, precisions: tuple[str, ...] = ()) -> Bundle:
    """A bundle of an untrained explainer whose masks differ from class to class."""
    torch.manual_seed(0)
    images = photographs(explainee.image_spec)
    explainer = method_of(config).build(explainee, config)
    for name, value in explainer.network.named_parameters():
        if "of_class" in name or name == "last.weight":
            torch.nn.init.normal_(value, 0, 0.2)
    record = CheckpointRecord.of(explainer, config, "photographs", 0)
    return export_trained(explainer, record, images, out, precisions=precisions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=[name.partition(",")[0] for name in MODELS])
    parser.add_argument("--explainers", nargs="*", choices=[case.title for case in CASES])
    parser.add_argument("--seconds", type=float, default=15, help="timed seconds per batch size")
    parser.add_argument("--threads", type=int, help="threads for one operator; default all cores")
    parser.add_argument("--out", type=Path, default=RESULTS / "cost.json")
    arguments = parser.parse_args()
    table = Table("model", "explainer", "batch", "p50 ms", "predict p50 ms", "forwards", "25–75 %", "bar", box=None)
    rows = []
    for title in [name for name in MODELS if not arguments.models or name.partition(",")[0] in arguments.models]:
        explainee = MODELS[title]()
        for case in [one for one in CASES if not arguments.explainers or one.title in arguments.explainers]:
            with tempfile.TemporaryDirectory() as folder:
                bundle = export(explainee, case.config, Path(folder) / "bundle")
                engine = open_engine(bundle, threads=arguments.threads)
                for row in bench_engine(engine, (1, 8), seconds=arguments.seconds, targets=case.targets):
                    rows.append({"model": title, "explainer": case.title, "bar": case.bar, **vars(row)})
                    table.add_row(
                        title,
                        case.title,
                        str(row.batch),
                        f"{row.p50_ms:.2f}",
                        f"{row.predict_p50_ms:.2f}",
                        f"{row.forwards:.3f}",
                        f"{row.forwards_low:.3f}–{row.forwards_high:.3f}",
                        f"≤ {case.bar}",
                    )
    Console().print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(), "threads": arguments.threads, "seconds": arguments.seconds}
    kept = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    measured = {(row["model"], row["explainer"]) for row in rows}
    kept = [row for row in kept if (row["model"], row.get("explainer")) not in measured and "explainer" in row]
    arguments.out.write_text(json.dumps({"rows": kept + [{**row, **about} for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()

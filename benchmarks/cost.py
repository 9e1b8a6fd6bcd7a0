"""What prediction and explanation cost in forwards, on ONNX Runtime CPU: the scenes ResNet at 96 px and ResNet-50 at
224 px.

    python benchmarks/cost.py

ResNet-50 has random weights (the cost does not depend on them) with batch-norm statistics of the order of one, so
that masks are not saturated. Each bundle is exported, gated and measured as `saccade bench` does. Prints a table and
writes benchmarks/results/cost.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision_on_cpu
from rich.console import Console
from rich.table import Table
from torch import nn

from saccade.accel.bench import bench_engine, machine
from saccade.accel.bundle import Bundle
from saccade.accel.engine import open_engine
from saccade.accel.image import resize_image
from saccade.evaluate.scene_material import PHOTOGRAPHS, load_photograph
from saccade.export.write_bundle import export_ltx
from saccade.methods.explainee import Explainee, load_explainee
from saccade.methods.ltx.checkpoint import CheckpointRecord
from saccade.methods.ltx.config import FORMS, Form, LTXConfig
from saccade.methods.ltx.model import build_ltx

RESULTS = Path(__file__).parent / "results"
MODELS = {
    "scenes ResNet, 96 px": "python:saccade.evaluate.scenes_models:resnet",
    "ResNet-50, 224 px": "torchvision:resnet50",
}
BARS = {"shared": 1.05, "own": 2.1}


def calibrate(module: nn.Module, images: torch.Tensor) -> None:
    """Batch-norm statistics of real images, so that random weights give maps and logits of the order of one."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        module(images)
    module.eval()


def export(explainee: Explainee, form: Form, out: Path) -> Bundle:
    """A bundle of an untrained explainer."""
    torch.manual_seed(0)
    config = LTXConfig(form=form)
    photographs = [load_photograph(name) for names in PHOTOGRAPHS.values() for name in names]
    images = np.stack([resize_image(photograph, explainee.image_spec) for photograph in photographs])
    explainer = build_ltx(explainee, config)
    return export_ltx(explainer, CheckpointRecord.of(explainer, config, "photographs", 0), images, out)


def main() -> None:
    torchvision_on_cpu.declare_operators()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="timed seconds per batch size")
    parser.add_argument("--threads", type=int, help="threads for one operator; default all cores")
    parser.add_argument("--out", type=Path, default=RESULTS / "cost.json")
    arguments = parser.parse_args()
    table = Table("model", "explainer", "batch", "p50 ms", "predict p50 ms", "forwards", "25–75 %", "bar", box=None)
    rows = []
    for title, spec in MODELS.items():
        random = spec.startswith("torchvision")
        torch.manual_seed(0)
        explainee = load_explainee(spec, "random" if random else None)
        if random:
            calibrate(explainee.model, torch.randn(16, 3, *explainee.image_spec.size))
        for form in FORMS:
            with tempfile.TemporaryDirectory() as folder:
                engine = open_engine(export(explainee, form, Path(folder) / "bundle"), threads=arguments.threads)
                for row in bench_engine(engine, (1, 8), seconds=arguments.seconds):
                    rows.append({"model": title, "form": form, "bar": BARS[form], **vars(row)})
                    table.add_row(
                        title,
                        form,
                        str(row.batch),
                        f"{row.p50_ms:.2f}",
                        f"{row.predict_p50_ms:.2f}",
                        f"{row.forwards:.3f}",
                        f"{row.forwards_low:.3f}–{row.forwards_high:.3f}",
                        f"≤ {BARS[form]}",
                    )
    Console().print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(), "threads": arguments.threads, "seconds": arguments.seconds, "rows": rows}
    arguments.out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()

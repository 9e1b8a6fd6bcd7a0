"""Every engine and precision that runs here, side by side with PyTorch, on ResNet-50 or ViT-B/16 with LTX (random
weights, 60 steps of training): latency, images/s, forwards, memory and parity, in one interleaved run.

    python benchmarks/engines.py --models ResNet-50 --precisions int8 --batch-sizes 1,8
    python benchmarks/engines.py --batch-sizes 1,8,64          on a GPU: TensorRT's plans are built as well

Rows are added to benchmarks/results/engines.json, pictures are drawn beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import torch
from brief_training import briefly_trained, bundle_of
from cost import MODELS
from rich.console import Console
from rich.table import Table

from saccade.accel.bench import Candidate, bench_engines
from saccade.accel.machine import machine
from saccade.accel.tensorrt_flavour import installed_flavours
from saccade.cli.bench_candidates import make_candidates
from saccade.cli.bench_plot import draw_bench
from saccade.errors import ParityError, SaccadeError
from saccade.export.in_torch import as_original, compiled_in_torch
from saccade.export.to_tensorrt import PlanConfig, build_plans
from saccade.methods.features import best_device

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=["ResNet-50", "ViT-B/16"], default=["ResNet-50", "ViT-B/16"])
    parser.add_argument("--precisions", nargs="*", choices=["fp16", "bf16", "int8"], default=["fp16", "int8"])
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--seconds", type=float, default=4, help="timed seconds per engine and batch size")
    parser.add_argument("--threads", type=int, help="of processors' engines; default all cores")
    parser.add_argument("--out", type=Path, default=RESULTS / "engines.json")
    arguments = parser.parse_args()
    batches = tuple(int(size) for size in arguments.batch_sizes.split(","))
    console, rows = Console(stderr=True), []
    about = {"machine": machine(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for model in arguments.models:
        explainer = briefly_trained(next(title for title in MODELS if title.startswith(f"{model},")))
        with tempfile.TemporaryDirectory() as folder:
            bundle = bundle_of(explainer, Path(folder) / "fp32")
            for precision in arguments.precisions:
                try:
                    bundle = bundle_of(explainer, Path(folder) / precision, (*bundle.manifest.precisions, precision))
                except ParityError as error:
                    console.print(f"{model}, {precision}: {error}", markup=False)
            if torch.cuda.is_available() and installed_flavours():
                for precision in ("fp32", *(kind for kind in bundle.manifest.precisions if kind != "int8")):
                    try:
                        config = PlanConfig(precision=precision, batches=(1, batches[len(batches) // 2], max(batches)))
                        bundle = build_plans(bundle, config)
                    except SaccadeError as error:
                        console.print(f"{model}, {precision}: {error}", markup=False)
            candidates = make_candidates(bundle, ["all"], ["all"], threads=arguments.threads)
            explainer.to(best_device())
            original = partial(as_original, explainer, bundle)
            candidates += [
                Candidate("torch-eager", original),
                Candidate("torch-compile", lambda original=original: compiled_in_torch(original())),  # type: ignore[misc]
            ]
            found = bench_engines(
                candidates,
                batches,
                seconds=arguments.seconds,
                min_runs=7,
                on_failure=lambda name, error: console.print(f"left out, {name}: {error}", markup=False),
            )
        picture = arguments.out.with_name(f"{arguments.out.stem}-{model.lower().replace('/', '')}.png")
        picture.write_bytes(draw_bench(found, f"{model}, LTX on its trunk"))
        rows += [{"model": model, **vars(row), "threads": arguments.threads, **about} for row in found]
    table = Table("model", "engine", "", "batch", "p50 ms", "p99", "images/s", "forwards", "MiB", "cosine", box=None)
    for row in rows:
        table.add_row(
            row["model"],
            row["engine"],
            row["precision"],
            str(row["batch"]),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['images_per_second']:.1f}",
            f"{row['forwards']:.3f}",
            f"{row['memory_mib']:.0f}",
            f"{row['mask_cosine']:.5f}",
        )
    Console(width=140).print(table)
    kept = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    measured = {(row["model"], row["gpu"]) for row in rows}
    kept = [row for row in kept if (row["model"], row["gpu"]) not in measured]
    arguments.out.write_text(json.dumps({"rows": kept + rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

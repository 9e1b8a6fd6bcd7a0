"""The Triton kernels: proof, then speed, against what the GPU's memory and tensor cores give.

    python benchmarks/kernels.py                    on a GPU: all operators
    python benchmarks/kernels.py --op mask_blend --dtype bfloat16
    python benchmarks/kernels.py --compile          without one: registers, spilled bytes and shared memory

Every operator is held against its reference in double precision on the very inputs that are timed; if one fails, no
number is printed. Then p20, p50 and p80 of the fused kernel beside the reference and `torch.compile` of it, bytes and
operations per second, and their share of the measured copy bandwidth and matrix-product rate. Writes
benchmarks/results/kernels.json and kernels.png, and into kernels/measured.json where the fused kernel is not the
fastest, for the dispatcher.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from saccade.kernels.dispatch import MEASURED, shape_class
from saccade.kernels.registry import KERNELS
from saccade.kernels.spec import KernelSpec, Sample, inaccuracy

RESULTS = Path(__file__).parent / "results" / "kernels.json"
QUANTILES = (0.2, 0.5, 0.8)


def milliseconds(call: Callable[[], Any]) -> list[float]:
    import triton

    found: list[float] = triton.testing.do_bench(call, rep=500, quantiles=list(QUANTILES))
    return found


def copy_bandwidth() -> float:
    """GB/s of a copy of 4 GiB, bytes read and written."""
    source = torch.empty(2**30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / milliseconds(lambda: target.copy_(source))[1] / 1e6


def matmul_rate() -> float:
    """TFLOP/s of a product of bfloat16 matrices of 8192 by 8192."""
    left = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    return 2 * 8192**3 / milliseconds(lambda: left @ left)[1] / 1e9


def wrong(spec: KernelSpec, sample: Sample) -> str:
    """What is not as accurate as PyTorch in the same precision; empty if all is. Networks are proved four images at a
    time: the states of all in double precision would fill the memory.
    """
    images = max(len(value) for value in sample.arguments[1:] if isinstance(value, Tensor))
    step = 4 if spec.operations(sample.arguments) else images
    for start in range(0, images, step):
        some = tuple(
            value[start : start + step]
            if step < images and isinstance(value, Tensor) and len(value) == images
            else value
            for value in sample.arguments
        )
        if said := inaccuracy(spec, some):
            return f"{spec.name}, {sample.name}, images from {start}: {said}"
    return ""


def measured(spec: KernelSpec, sample: Sample, dtype: torch.dtype, copy: float, matmul: float) -> dict[str, Any]:
    arguments = sample.arguments
    result = spec.fused(*arguments)
    bytes_moved, operations = spec.bytes_moved(arguments, result), spec.operations(arguments)
    del result
    torch._dynamo.reset()  # each sample a graph of its own sizes
    compiled = torch.compile(spec.reference, dynamic=False)
    times = {
        "fused": milliseconds(lambda: spec.fused(*arguments)),
        "eager": milliseconds(lambda: spec.reference(*arguments)),
        "compiled": milliseconds(lambda: compiled(*arguments)),
    }
    bandwidth, rate = bytes_moved / times["fused"][1] / 1e6, operations / times["fused"][1] / 1e9
    return {
        "op": spec.name,
        "sample": sample.name,
        "dtype": str(dtype).removeprefix("torch."),
        "class": shape_class(spec.name, arguments),
        "ms": {name: dict(zip(("p20", "p50", "p80"), value, strict=True)) for name, value in times.items()},
        "GB/s": bandwidth,
        "of the copy bandwidth": bandwidth / copy,
        "TFLOP/s": rate,
        "of the matmul rate": rate / matmul,
        "times faster than eager": times["eager"][1] / times["fused"][1],
        "times faster than compiled": times["compiled"][1] / times["fused"][1],
        "fastest": min(times, key=lambda name: times[name][1]),
    }


def on_gpu(
    specs: list[KernelSpec], dtypes: list[torch.dtype], console: Console, write: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    import triton

    copy, matmul = copy_bandwidth(), matmul_rate()
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(),
        "driver": driver(),
        "commit": commit(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "copy GB/s": copy,
        "matmul TFLOP/s": matmul,
    }
    rows: list[dict[str, Any]] = []
    for spec in track(specs, "kernels", console=console):
        for dtype in dtypes:
            for sample in spec.large(dtype, torch.device("cuda")):
                if said := wrong(spec, sample):
                    console.print(said, style="red", markup=False)
                    sys.exit(1)
                rows.append(measured(spec, sample, dtype, copy, matmul))
                write(about | {"rows": rows})  # what is measured is kept if a later one breaks off
                torch.cuda.empty_cache()
    return about | {"rows": rows}


def driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    asked = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def remember(found: dict[str, Any]) -> None:
    """What is faster than the fused kernel on this GPU, for the dispatcher."""
    known = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    names = {"eager": "reference", "compiled": "compiled"}
    classes = {row["class"] for row in found["rows"]}
    kept = {kind: what for kind, what in known.get(found["gpu"], {}).items() if kind not in classes}
    slower = {row["class"]: names[row["fastest"]] for row in found["rows"] if row["fastest"] != "fused"}
    MEASURED.write_text(json.dumps(known | {found["gpu"]: kept | slower}, indent=1, sort_keys=True) + "\n")


def draw(found: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    rows = found["rows"]
    figure = Figure(figsize=(9, 1.5 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        whole = row["op"].startswith("coordinate_mlp")
        share = row["of the matmul rate" if whole else "of the copy bandwidth"]
        axes.barh(place, share, color="#4466aa" if whole else "#dd8844")
        text = f"{row['times faster than eager']:.1f}× eager, {row['times faster than compiled']:.1f}× compiled"
        axes.text(share + 0.01, place, text, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['op']} {row['sample']} {row['dtype']}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35)
    axes.set_xlabel("share of the measured copy bandwidth (orange) or bfloat16 matrix-product rate (blue)")
    axes.set_title(f"{found['gpu']}, Triton {found['triton']}, PyTorch {found['torch']}")
    figure.savefig(file, dpi=120)


def ahead_of_time(specs: list[KernelSpec], dtypes: list[torch.dtype]) -> Table:
    from saccade.kernels.ahead_of_time import ARCHITECTURES, compile_launch, launches

    table = Table("kernel", "constants", "sm", "registers", "spilled", "shared", "tensor cores", box=None)
    for spec in specs:
        for launch in track(launches(spec, dtypes), spec.name, console=Console(stderr=True)):
            constants = " ".join(f"{name}={value}" for name, value in launch.constants.items())
            for architecture in ARCHITECTURES:
                one = compile_launch(launch, architecture)
                numbers = (str(value) for value in (architecture, one.registers, one.spilled, one.shared))
                table.add_row(one.kernel, constants, *numbers, "yes" if one.matrix_units else "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="*", choices=[spec.name for spec in KERNELS])
    parser.add_argument("--dtype", nargs="*", choices=["float32", "float16", "bfloat16"], default=["bfloat16"])
    parser.add_argument("--compile", action="store_true", help="ahead of time, for GPUs that are not here")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    console = Console(width=160)
    specs = [spec for spec in KERNELS if not arguments.op or spec.name in arguments.op]
    dtypes = [getattr(torch, name) for name in arguments.dtype]
    if arguments.compile:
        console.print(ahead_of_time(specs, dtypes))
        return
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --compile needs none")

    def write(found: dict[str, Any]) -> None:
        if not arguments.dry:
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")

    found = on_gpu(specs, dtypes, Console(stderr=True), write)
    table = Table(
        "op", "sample", "dtype", "ms", "GB/s", "of copy", "TFLOP/s", "of matmul", "eager", "compiled", box=None
    )
    for row in found["rows"]:
        numbers = [f"{row[name]:.3g}" for name in ("GB/s", "of the copy bandwidth", "TFLOP/s", "of the matmul rate")]
        faster = [f"{row[f'times faster than {name}']:.2f}×" for name in ("eager", "compiled")]
        table.add_row(row["op"], row["sample"], row["dtype"], f"{row['ms']['fused']['p50']:.3f}", *numbers, *faster)
    console.print(table)
    console.print(
        f"{found['gpu']}: copy {found['copy GB/s']:.0f} GB/s, matmul {found['matmul TFLOP/s']:.0f} TFLOP/s", style="dim"
    )
    if not arguments.dry:
        draw(found, RESULTS.with_suffix(".png"))
        remember(found)


if __name__ == "__main__":
    main()

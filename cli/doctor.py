"""``saccade doctor``."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import any_json

__all__ = ["doctor"]

_NEEDS = (  # package, what for, extra; the core packages have no extra
    ("numpy", "everything", ""),
    ("pillow", "reading images", ""),
    ("onnxruntime", "running bundles", ""),
    ("pydantic", "manifests", ""),
    ("rich", "the command line", ""),
    ("torch", "training and exporting", "train"),
    ("onnx", "exporting", "train"),
    ("onnxscript", "exporting", "train"),
    ("safetensors", "weights", "train"),
    ("torchvision", "torchvision: models", "models"),
    ("timm", "timm: models", "models"),
    ("transformers", "hf: models", "models"),
    ("scipy", "AIC, SIC, the sanity check", "evaluate"),
    ("threadpoolctl", "AIC, SIC", "evaluate"),
    ("captum", "baselines to compare with", "evaluate"),
    ("starlette", "saccade serve", "serve"),
    ("grpcio", "saccade serve", "serve"),
    ("uvicorn", "saccade serve", "serve"),
    ("orjson", "saccade serve", "serve"),
    ("prometheus-client", "saccade serve", "serve"),
    ("pyarrow", "saccade batch", "batch"),
    ("fsspec", "saccade batch", "batch"),
    ("ray", "saccade batch --ray", "ray"),
    ("tritonclient", "saccade deploy triton", "deploy"),
    ("openvino", "engine openvino", "openvino"),
    ("tensorrt", "engine tensorrt", "tensorrt"),
    ("tensorrt-rtx", "engine tensorrt, RTX GPUs", "tensorrt-rtx"),
    ("cuda-bindings", "engine tensorrt", "tensorrt"),
    ("scikit-image", "planted scenes", "scenes"),
    ("scikit-learn", "planted scenes", "scenes"),
    ("matplotlib", "planted scenes", "scenes"),
)

_FASTER = ("openvino", "tensorrt", "tensorrt-rtx", "ray")  # engines besides the one that comes along, and clusters


@click.command()
@any_json
def doctor(as_json: bool) -> None:
    """Say what is installed, what runs here, and which line installs what is missing.

    \b
    Example:
      saccade doctor
    """
    import platform
    import sys
    from importlib.metadata import PackageNotFoundError, version

    from .. import __version__

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return version("onnxruntime-gpu") if package == "onnxruntime" and _has("onnxruntime-gpu") else None

    def _has(package: str) -> bool:
        try:
            version(package)
        except PackageNotFoundError:
            return False
        return True

    packages = [
        {"package": name, "version": installed(name), "for": purpose, "extra": extra} for name, purpose, extra in _NEEDS
    ]
    report: dict[str, Any] = {
        "saccade": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "providers": _providers(),
        "gpu": _gpu(),
        "gpu_libraries": _gpu_libraries(),
        "packages": packages,
        "install": sorted(
            {
                f"pip install 'saccade[{p['extra']}]'"
                for p in packages
                if p["version"] is None and p["extra"] and p["extra"] not in _FASTER
            }
        ),
    }
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return [str(name) for name in onnxruntime.get_available_providers()]


def _gpu_libraries() -> list[dict[str, Any]]:
    try:
        from ..accel.gpu_libraries import gpu_libraries
    except ImportError:  # ONNX Runtime is missing, which the table says
        return []
    return [vars(library) for library in gpu_libraries()]


def _gpu() -> str:
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none found (no nvidia-smi)"
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {error}"
    return answer.stdout.strip() or f"nvidia-smi: {answer.stderr.strip() or answer.returncode}"


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"saccade {report['saccade']}, Python {report['python']}, {report['platform']}", highlight=False)
    console.print(f"ONNX Runtime providers: {', '.join(report['providers']) or 'none'}", highlight=False)
    console.print(f"GPU: {report['gpu']}", highlight=False)
    wanted = "CUDAExecutionProvider" in report["providers"] or not report["gpu"].startswith("none found")
    if lacking := [library for library in report["gpu_libraries"] if wanted and not library["found"]]:
        console.print("What the GPU needs and is not here:")
        for library in lacking:
            console.print(
                f"  {library['name']}, for {library['purpose']}: {library['remedy']}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    table = Table(box=None, pad_edge=False)
    for heading in ("package", "version", "for"):
        table.add_column(heading)
    for package in report["packages"]:
        missing = "[red]missing[/red]" if not package["extra"] else "[yellow]not installed[/yellow]"
        table.add_row(package["package"], package["version"] or missing, package["for"])
    console.print(table)
    if report["install"]:
        console.print("To install what is not there:")
        for line in report["install"]:
            console.print(f"  {line}", markup=False, highlight=False)
    else:
        console.print("[green]Everything is there.[/green]")

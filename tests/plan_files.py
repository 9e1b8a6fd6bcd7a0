"""TensorRT plans in a bundle, of no content: where a plan is only carried about."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["add_plans", "rewrite_manifest"]


def rewrite_manifest(bundle: Path, **changes: Any) -> None:
    """Put other values into a bundle's manifest."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | changes))


def add_plans(
    bundle: Path, *, gpus: tuple[str, ...], flavour: str = "tensorrt", batches: tuple[int, int, int] = (1, 4, 16)
) -> None:
    """Plans of no content, one for each GPU and answer."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    files, plans = manifest["files"], manifest["plans"]
    for gpu in gpus:
        for answer in ("mask", "probabilities"):
            name, content = f"explainer.{answer}.fp32.{gpu}.{flavour}.plan", f"{gpu} {answer}".encode()
            (bundle / name).write_bytes(content)
            files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            plans[name] = {
                "flavour": flavour, "version": "10.13.3", "gpus": [gpu], "answer": answer, "precision": "fp32",
                "batches": list(batches),
            }  # fmt: skip
    rewrite_manifest(bundle, files=files, plans=plans)

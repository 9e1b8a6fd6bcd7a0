"""Is this installation of Saccade whole? Run by the Python whose installation it is, which needs no PyTorch.

    PYTHON benchmarks/installed.py BUNDLE [--extras serve batch train]

Explains images by a bundle and holds the masks against the bundle's golden samples, runs every command's help,
`doctor`, `verify`, `tune` and `bench`; with the extra `batch` a batch job, with `serve` a server that is asked over
HTTP, with `train` an export and a few steps of training. Says what failed, and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saccade.accel.bundle import Golden, open_bundle

EXTRAS = ("serve", "batch", "train")
MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )
    return model.eval()
"""
SECONDS = 300


def run(*arguments: str | Path, code: int = 0, where: Path | None = None, **environment: str) -> str:
    """The command line, in a process of its own; what it printed.

    Raises:
        SystemExit: it ended with another exit code, or a traceback.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from saccade.cli.main import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=where,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode != code or "Traceback" in done.stderr:
        sys.exit(f"saccade {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def write_photos(golden: Golden, folder: Path) -> None:
    """The golden samples as files, and one that is no image."""
    folder.mkdir()
    for number, image in enumerate(golden.images):
        Image.fromarray(image).save(folder / f"golden-{number}.png")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff nothing more")


def check_explaining(bundle: Path, golden: Golden, folder: Path) -> None:
    """Masks from files are the golden samples', one image is reported as damaged."""
    out = folder / "explained"
    formats = ("--format", "npz", "--format", "overlay", "--format", "mask")
    run("explain", folder / "photos", "--bundle", bundle, "--out", out, *formats, code=1)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    damaged = [line for line in lines if "error" in line]
    assert len(lines) == len(golden.images) + 1, lines
    assert len(damaged) == 1, damaged
    for line in lines:
        if "error" not in line:
            number = int(re.findall(r"\d+", Path(line["image"]).stem)[0])
            with np.load(out / line["files"]["npz"]) as stored:
                if golden.target[number] < 0:
                    difference = np.abs(stored["mask"] - golden.mask[number, 0]).max()
                    assert difference <= 1e-4, (line["image"], difference)
                assert np.abs(stored["probabilities"] - golden.probabilities[number]).max() <= 1e-5


def check_commands(bundle: Path, folder: Path) -> None:
    """Help of all commands, and those that need a bundle alone."""
    listed = re.findall(r"^  (\w+)", run("--help").partition("Commands:")[2], re.MULTILINE)
    assert len(listed) > 10, listed
    for name in listed:
        run(name, "--help")
    run("doctor")
    run("verify", bundle)
    tuned = folder / "tuned"
    tuned.mkdir()
    for file in bundle.iterdir():
        (tuned / file.name).write_bytes(file.read_bytes())
    run("tune", tuned, "--seconds", "0.1")
    run("bench", bundle, "--seconds", "0.1")


def check_batch(bundle: Path, golden: Golden, folder: Path) -> None:
    """Every image is a row, and the damaged one has the error."""
    import pyarrow.parquet as pq

    run("batch", folder / "photos", folder / "table", "--bundle", bundle, "--shard-size", "5", code=1)
    rows = [row for file in sorted((folder / "table").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert len(rows) == len(golden.images) + 1, len(rows)
    assert [row["key"] for row in rows if row["error"]] == ["damaged.jpg"]
    assert all(row["mask"] for row in rows if not row["error"])


def check_serve(bundle: Path, golden: Golden, folder: Path) -> None:
    """A server answers one request over HTTP as the golden samples say, and ends when it is told to."""
    command = [sys.executable, "-P", "-c", "from saccade.cli.main import main; main()", "serve", str(bundle)]
    log = folder / "serve.log"
    with log.open("wb") as stream:
        server = subprocess.Popen([*command, "--port", "0", "--grpc-port", "0"], stdout=stream, stderr=stream)
    try:
        address, began = None, time.monotonic()
        while address is None:
            found = re.search(r"http://[\w.:\[\]]+:(\d+)", log.read_text())
            address = f"http://127.0.0.1:{found[1]}" if found else None
            if server.poll() is not None or time.monotonic() - began > 60:
                sys.exit(f"saccade serve: not ready\n{log.read_text()}")
            time.sleep(0.1)
        image = {"name": "image", "datatype": "UINT8", "shape": [1, *golden.images.shape[1:]]}
        document = {"inputs": [{**image, "data": golden.images[0].ravel().tolist()}]}
        url = f"{address}/v2/models/{bundle.name}/infer"
        request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
        outputs: dict[str, Any] = {one["name"]: one for one in answer["outputs"]}
        probabilities = np.array(outputs["probabilities"]["data"])
        assert np.abs(probabilities - golden.probabilities[0]).max() <= 1e-5, probabilities
        assert outputs["mask"]["shape"][-2:] == list(golden.mask.shape[-2:]), outputs["mask"]["shape"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    assert server.returncode == 0, (server.returncode, log.read_text())


def check_training(folder: Path) -> None:
    """A gradient method is exported; a few steps of training make an explainer that is explained with."""
    (folder / "installed_model.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    for number in range(24):
        image = rng.integers(0, 256 if number % 2 else 80, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "data" / f"{number}.png")
    model, data = ("--model", "python:installed_model:build"), ("--data", folder / "data")
    here = {"PYTHONPATH": str(folder)}
    run("export", "--method", "gradcam", *model, *data, "--out", folder / "gradient", where=folder, **here)
    steps = ("--steps", "2", "--batch-size", "4")
    run("train", "ltx", *model, *data, *steps, "--out", folder / "ltx", where=folder, **here)
    run("explain", folder / "data", "--bundle", folder / "gradient", "--out", folder / "by-gradient")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--extras", nargs="*", choices=EXTRAS, default=[])
    arguments = parser.parse_args()
    bundle, done = arguments.bundle.resolve(), []
    golden = open_bundle(bundle).golden
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(golden, folder / "photos")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        check_explaining(bundle, golden, folder)
        check_commands(bundle, folder)
        done += ["explain", "commands"]
        if "batch" in arguments.extras:
            check_batch(bundle, golden, folder)
            done.append("batch")
        if "serve" in arguments.extras:
            check_serve(bundle, golden, folder)
            done.append("serve")
        if "train" in arguments.extras:
            check_training(folder)
            done.append("train")
    packages = ("numpy", "pillow", "onnxruntime", "click", "rich", "pydantic")
    said = {"python": platform.python_version(), **{package: version(package) for package in packages}, "passed": done}
    print(json.dumps(said))


if __name__ == "__main__":
    main()

"""What `saccade batch` makes of a machine: images/s from a folder of JPEGs against the bare engine, and what is left
when it is killed.

    python benchmarks/batch.py                      throughput, in units of the bare engine's, interleaved in one run
    python benchmarks/batch.py --models "scenes ResNet" --pixels 96      the same from JPEGs of the model's size
    python benchmarks/batch.py --kill               2,000 images, killed ten times at random, then finished
    python benchmarks/batch.py --kill-actor         Ray Data, an actor killed in the middle

The bare engine is `engine.run` on arrays that are decoded and resized already, a batch at a time, with the same batch
size and threads. A job runs several batches side by side, where that is faster; what the engine alone does so, on the
same arrays, is measured as well.
The images are the photographs of scikit-image and scikit-learn, at most `--pixels` a side, as JPEG. Rows are added to
benchmarks/results/batch.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from cost import MODELS, export
from PIL import Image
from rich.console import Console
from rich.table import Table

from saccade.accel.batch.explainer import BatchConfig, BatchExplainer
from saccade.accel.batch.plan import plan_of
from saccade.accel.batch.run import run_batch
from saccade.accel.batch.shards import Ledger
from saccade.accel.batch.sources import find_source
from saccade.accel.bundle import file_sha256
from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.image import load_image, resize_image
from saccade.accel.machine import machine
from saccade.accel.pipeline import PipelineConfig
from saccade.evaluate.scene_material import PHOTOGRAPHS, load_photograph
from saccade.methods.ltx.config import LTXConfig

RESULTS = Path(__file__).parent / "results"
COUNTS = {"ResNet-50, 224 px": 400, "scenes ResNet, 96 px": 2000}


def write_photographs(folder: Path, count: int, pixels: int) -> Path:
    """So many JPEGs of a few hundred pixels, each in a version of its own."""
    folder.mkdir(parents=True)
    names = [name for split in PHOTOGRAPHS.values() for name in split]
    photographs = [Image.fromarray(load_photograph(name)) for name in names]
    for photograph in photographs:
        photograph.thumbnail((pixels, pixels))
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        photograph.rotate(index // len(photographs) % 7).save(folder / f"{index:05d}.jpg", quality=90)
    return folder


def bare(engine: Engine, images: np.ndarray, batch: int) -> float:
    """Seconds of the engine alone, with as many batches at once as it has streams."""
    start = time.perf_counter()
    with ThreadPoolExecutor(engine.streams) as pool:
        list(pool.map(lambda first: engine.run(images[first : first + batch]), range(0, len(images), batch)))
    return time.perf_counter() - start


def whole(explainer: BatchExplainer, photographs: Path, out: Path) -> float:
    """Seconds of a job over a folder, from listing it to Parquet files on disk; the engine is open already."""
    start = time.perf_counter()
    source = find_source(str(photographs))
    plan = plan_of(str(photographs), source, explainer.manifest, explainer.config, precision="fp32")
    with Ledger(out, plan) as ledger:
        done = sum(answered.images for answered in run_batch(source, source.shards, explainer, ledger))
    seconds = time.perf_counter() - start
    assert done == sum(shard.images or 0 for shard in source.shards)
    return seconds


def throughput(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for title, count in COUNTS.items():
        if arguments.models and title.partition(",")[0] not in arguments.models:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            bundle = export(MODELS[title](), LTXConfig(), root / "bundle")
            engine = open_engine(bundle, threads=arguments.threads)
            count = arguments.count or count
            pixels = arguments.pixels
            photographs = write_photographs(root / "photographs", count, pixels)
            spec = bundle.manifest.image
            images = np.stack([resize_image(load_image(path), spec) for path in sorted(photographs.iterdir())])
            batch = arguments.batch_size or bundle.manifest.batch
            for mask in arguments.masks:
                pipeline = PipelineConfig(batch_size=batch)
                config = BatchConfig(pipeline=pipeline, mask=mask, decode_threads=arguments.decode_threads)
                explainer = BatchExplainer(bundle, config, threads=arguments.threads)
                seconds: dict[str, list[float]] = {"bare": [], "streams": [], "whole": []}
                cpu: dict[str, list[float]] = {which: [] for which in seconds}
                for warmed in (engine, explainer.engine):
                    bare(warmed, images[: 4 * batch], batch)
                for round_number in range(arguments.rounds):
                    for which in list(seconds)[:: 1 if round_number % 2 == 0 else -1]:
                        began = time.process_time()
                        if which == "whole":
                            took = whole(explainer, photographs, root / f"{mask}-{round_number}")
                        else:
                            took = bare(engine if which == "bare" else explainer.engine, images, batch)
                        seconds[which].append(took)
                        cpu[which].append((time.process_time() - began) / count)
                ratios, of_streams = (np.divide(seconds[which], seconds["whole"]) for which in ("bare", "streams"))
                rows.append(
                    {
                        "model": title,
                        "mask": mask,
                        "images": count,
                        "pixels": pixels,
                        "batch": batch,
                        "rounds": len(ratios),
                        "streams": explainer.engine.streams,
                        "bare_images_per_second": count / float(np.median(seconds["bare"])),
                        "images_per_second": count / float(np.median(seconds["whole"])),
                        "of_bare": float(np.median(ratios)),
                        "of_bare_low": float(np.percentile(ratios, 25)),
                        "of_bare_high": float(np.percentile(ratios, 75)),
                        "of_streams": float(np.median(of_streams)),
                        "bare_cpu_ms": float(np.median(cpu["bare"])) * 1e3,
                        "streams_cpu_ms": float(np.median(cpu["streams"])) * 1e3,
                        "cpu_ms": float(np.median(cpu["whole"])) * 1e3,
                    }
                )
    headings = ("bare images/s", "images/s", "of bare", "25–75 %", "of streams", "CPU ms, bare", "streams", "CPU ms")
    table = Table("model", "mask", "batch", *headings)
    for row in rows:
        table.add_row(
            row["model"],
            row["mask"],
            str(row["batch"]),
            f"{row['bare_images_per_second']:.1f}",
            f"{row['images_per_second']:.1f}",
            f"{row['of_bare']:.3f}",
            f"{row['of_bare_low']:.3f}–{row['of_bare_high']:.3f}",
            f"{row['of_streams']:.3f}",
            f"{row['bare_cpu_ms']:.2f}",
            f"{row['streams_cpu_ms']:.2f}",
            f"{row['cpu_ms']:.2f}",
        )
    Console(width=160).print(table)
    return rows


def _program(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from saccade.cli.main import main; main()", *map(str, arguments)]


def _check(folder: Path, photographs: Path) -> dict[str, Any]:
    """What is in a folder of results, against what is in the folder of images."""
    table = pq.read_table(folder)
    digests = {path.name: file_sha256(path) for path in photographs.iterdir()}
    times = Counter(table["key"].to_pylist())
    rows = table.select(["key", "sha256"]).to_pylist()
    right = sum(digests.get(row["key"]) == row["sha256"] for row in rows)
    return {
        "rows": table.num_rows,
        "duplicates": sum(count - 1 for count in times.values()),
        "lost": len(digests.keys() - times.keys()),
        "right_sha256": right,
        "left_behind": len(list((folder / "_saccade").glob("*.partial"))),
    }


def kill(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill a run ten times at random moments, from its start until it has finished a few shards, then let it finish."""
    count, draw = arguments.count or 2000, random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = export(MODELS["scenes ResNet, 96 px"](), LTXConfig(), root / "bundle")
        photographs = write_photographs(root / "photographs", count, arguments.pixels)
        out, whole_out = root / "explained", root / "at-once"

        def command(into: Path) -> list[str]:
            return _program("batch", photographs, into, "--bundle", bundle.path, "--shard-size", 50)

        first, whole = _undisturbed(command(whole_out), whole_out)
        killed, finished = [], []
        for _ in range(arguments.kills):
            running = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            began, moment = time.monotonic(), draw.uniform(0.5 * first, first + 0.15 * (whole - first))
            try:
                running.wait(moment)
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGKILL)
                running.wait()
                killed.append(round(time.monotonic() - began, 2))
            finished.append(len(list(out.glob("shard-*.parquet"))))
        last = subprocess.run(command(out), capture_output=True, text=True, check=False)
        same = pq.read_table(out).sort_by("key").equals(pq.read_table(whole_out).sort_by("key"))
        return {
            "test": "kill -9",
            "images": count,
            "kills_after_s": killed,
            "shards_finished_after_each": finished,
            "exit_code": last.returncode,
            **_check(out, photographs),
            "equal_to_a_run_without_kills": same,
        }


def _undisturbed(command: list[str], out: Path) -> tuple[float, float]:
    """Run it; seconds until the first shard, and in all."""
    began, first = time.monotonic(), 0.0
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None:
        if not first and next(out.glob("shard-*.parquet"), None):
            first = time.monotonic() - began
        time.sleep(0.02)
    assert running.returncode == 0, "the run without kills failed"
    return first, time.monotonic() - began


def kill_actor(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill the process of an actor of Ray Data while it is at a shard."""
    count = arguments.count or 2000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = export(MODELS["scenes ResNet, 96 px"](), LTXConfig(), root / "bundle")
        photographs = write_photographs(root / "photographs", count, arguments.pixels)
        out = root / "explained"
        command = _program(
            "batch", photographs, out, "--bundle", bundle.path, "--shard-size", 100, "--ray", "--actors", 2
        )
        before = set(_actors())
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while running.poll() is None and not list(out.glob("shard-*.parquet")):
            time.sleep(0.05)
        actors = [pid for pid in _actors() if pid not in before]
        os.kill(actors[0], signal.SIGKILL)
        done = len(list(out.glob("shard-*.parquet")))
        running.communicate(timeout=500)
        return {
            "test": "kill an actor",
            "images": count,
            "actors": len(actors),
            "shards_finished_before": done,
            "exit_code": running.returncode,
            **_check(out, photographs),
        }


def _actors() -> list[int]:
    """Processes of Ray's actors that explain."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::MapWorker(MapBatches(ShardExplainer))" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=[name.partition(",")[0] for name in COUNTS])
    parser.add_argument("--masks", nargs="*", choices=["png", "uint8", "float16", "none"], default=["png"])
    parser.add_argument("--rounds", type=int, default=7, help="pairs of both")
    parser.add_argument("--count", type=int, help="images")
    parser.add_argument("--pixels", type=int, default=400, help="longest side of a photograph")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int, help="for one operator; default all cores")
    parser.add_argument("--decode-threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "batch.json")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kill-actor", action="store_true")
    arguments = parser.parse_args()
    if arguments.kill or arguments.kill_actor:
        rows = [kill(arguments)] if arguments.kill else []
        rows += [kill_actor(arguments)] if arguments.kill_actor else []
        Console().print_json(data=rows)
    else:
        rows = throughput(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    measured = {_what(row) for row in rows}
    kept = [row for row in kept if _what(row) not in measured]
    rows = kept + [{**row, "machine": machine(), "threads": arguments.threads} for row in rows]
    arguments.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


def _what(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("test", "model", "mask", "pixels", "batch"))


if __name__ == "__main__":
    main()

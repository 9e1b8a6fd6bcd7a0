"""A hundred thousand images through the pipeline: does memory stay flat, is a file or a thread left open?

    python benchmarks/soak.py --images 100000          about 20 minutes on two cores
    python benchmarks/soak.py --images 5000 --dry

The smallest model, so that reading, decoding, resizing, drawing and writing are what is done. PNG, JPEG and WebP files
of several sizes, some of them damaged, go through `explain_images` into a `ResultWriter`, as by `saccade explain`, and
through a `saccade batch` job; half of the images each. Memory (resident, after a garbage collection), open files and
threads are sampled as images are done. Exits with 1 if memory at the end exceeds that after the first tenth by more
than 5 % and 16 MiB, or anything stays open. Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from saccade.accel.batch.explainer import BatchConfig
from saccade.accel.batch.job import BatchJob, JobConfig
from saccade.accel.engines import open_engine
from saccade.accel.machine import machine
from saccade.accel.pipeline import explain_images
from saccade.accel.results import Failure, ResultWriter

RESULTS = Path(__file__).parent / "results" / "soak.json"
SIZES = ((32, 32), (48, 64), (200, 150), (400, 300))
FILES = 240
DAMAGED = 12  # of them
SAMPLES = 100
PART = 500  # images whose results are written into one folder
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """What the process holds after so many images."""

    images: int
    mib: float
    files: int
    threads: int


def sample(images: int) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(images, round(pages * PAGE / 2**20, 1), len(os.listdir("/proc/self/fd")), threading.active_count())


def write_images(folder: Path) -> list[Path]:
    """Files of several formats and sizes; some end in the middle, are empty, or are something else."""
    folder.mkdir()
    rng, found = np.random.default_rng(0), []
    for number in range(FILES):
        width, height = SIZES[number % len(SIZES)]
        suffix = ("png", "jpg", "webp")[number % 3]
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path = folder / f"{number:03d}.{suffix}"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        if number % (FILES // DAMAGED) == 5:
            content = path.read_bytes()
            path.write_bytes((content[: len(content) // 2], b"", b"some text")[number // 20 % 3])
        found.append(path)
    return found


def explaining(bundle: Path, files: list[Path], count: int, folder: Path) -> Iterator[int]:
    """`saccade explain`, image by image: whether each failed. What was written goes every now and then; overlays, which
    take most of the time, are drawn for one image in five.
    """
    engine = open_engine(bundle)
    done = 0
    while done < count:
        part = min(PART, count - done)
        formats = ("overlay", "mask", "npz") if done // PART % 5 == 0 else ("mask", "npz")
        writer = ResultWriter(folder / "explained", formats)
        for result in explain_images(engine, islice(cycle(files), done, done + part)):
            writer.write(result)
            yield isinstance(result, Failure)
        writer.close()
        shutil.rmtree(folder / "explained")
        done += part


def batches(bundle: Path, files: list[Path], count: int, folder: Path) -> Iterator[int]:
    """`saccade batch` over links to the files: a value for each image, whether it failed."""
    source = folder / "source"
    for number in range(count):
        below = source / f"{number // 1000:04d}"
        below.mkdir(parents=True, exist_ok=True)
        file = files[number % len(files)]
        os.link(file, below / f"{number:07d}{file.suffix}")
    job = JobConfig(source=str(source), folder=folder / "table", bundle=bundle, batch=BatchConfig(), shard_size=1000)
    with BatchJob(job) as running:
        for answered in running.run():
            failed = len(answered.failures)
            yield from [True] * failed + [False] * (answered.images - failed)
        summary = running.summary()
    assert summary.images == count, summary


def run(name: str, work: Iterator[int], count: int, console: Console) -> dict[str, object]:
    """Do the work and sample; what was found."""
    every, done, failed = max(1, count // SAMPLES), 0, 0
    began, samples = time.perf_counter(), [sample(0)]
    for one in work:
        done, failed = done + 1, failed + one
        if done % every == 0:
            samples.append(sample(done))
            if len(samples) % 10 == 1:
                console.print(f"{name}: {samples[-1]}")
    seconds = time.perf_counter() - began
    after = sample(done)
    tenth = [one.mib for one in samples if one.images >= count // 10][:5]
    early, late = float(np.median(tenth)), float(np.median([one.mib for one in samples[-5:]]))
    flat = late - early <= max(0.05 * early, 16)
    return {
        "images": done,
        "failed": failed,
        "seconds": round(seconds, 1),
        "images_per_second": round(done / seconds, 1),
        "mib_after_a_tenth": early,
        "mib_at_the_end": late,
        "flat": flat,
        "files_left_open": after.files - samples[0].files,
        "threads_left": after.threads - samples[0].threads,
        "samples": [asdict(one) for one in samples],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--dry", action="store_true", help="print the result, write nothing")
    arguments = parser.parse_args()
    console, each = Console(stderr=True), arguments.images // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = in_another_process(folder)
        files = write_images(folder / "files")
        found = {}
        for title, work in (("explain", explaining), ("batch", batches)):
            list(work(bundle, files, 64, folder / "warm-up"))  # what is loaded once is no leak
            shutil.rmtree(folder / "warm-up", ignore_errors=True)
            found[title] = run(title, work(bundle, files, each, folder / title), each, console)
            shutil.rmtree(folder / title, ignore_errors=True)
    print(json.dumps({name: {k: v for k, v in one.items() if k != "samples"} for name, one in found.items()}, indent=1))
    if not arguments.dry:
        RESULTS.write_text(json.dumps({**found, "machine": machine()}, indent=1) + "\n", encoding="utf-8")
    good = all(one["flat"] and one["files_left_open"] <= 0 and one["threads_left"] <= 0 for one in found.values())
    return 0 if good else 1


def in_another_process(folder: Path) -> Path:
    """The tiny bundle, made where PyTorch's memory is not this process's."""
    code = "import sys, pathlib; from small_bundle import *; make_bundle(make_explainee(), pathlib.Path(sys.argv[1]))"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", code, str(folder / "bundle")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    return folder / "bundle"


if __name__ == "__main__":
    sys.exit(main())

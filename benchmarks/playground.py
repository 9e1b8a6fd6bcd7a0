"""How long the playground takes from a move of a slider until the new mask is on the screen, in headless Chromium.

    python benchmarks/playground.py                       # the INR of the scenes' ResNet, exported here
    python benchmarks/playground.py --bundle my-bundle    # any bundle whose masks are functions

A move is a keystroke on the slider. The time runs from the browser's time stamp of the event until the first frame
after the answer to it was put on the canvas; of moves in quick succession only some are answered, the last one always.
The server is another process with its usual settings.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

# The area that is shown changes as the mask is put on the canvas; it is seen in the frame after. That of a mask is the
# one asked for, which tells whose answer it is.
WATCH = """() => {
    window.moves = [];
    window.events = 0;
    const stamps = new Map();
    const asked = document.getElementById("area-value");
    const shown = document.querySelector("[data-number=area]");
    for (const id of ["area", "resolution"])
        document.getElementById(id).addEventListener("input", ({ timeStamp }) => {
            window.events += 1;
            stamps.set(asked.textContent, timeStamp);
        });
    new MutationObserver(() => {
        const began = stamps.get(shown.textContent);
        stamps.delete(shown.textContent);
        if (began) requestAnimationFrame(() => window.moves.push(performance.now() - began));
    }).observe(shown, { childList: true });
}"""


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.option(
    "--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), help="One with masks as functions."
)
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="[default: a sample]")
@click.option("--moves", default=60, show_default=True, help="Of each slider.")
@click.option("--resolution", default=256, show_default=True, help="Pixels of the mask while the area changes.")
def main(bundle: Path | None, image: Path | None, moves: int, resolution: int) -> None:
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise click.ClickException("there is no Chromium on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle or exported(Path(folder) / "inr")
        server, url = started(bundle)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.goto(url)
                page.wait_for_selector(".panel button:enabled")
                if image:
                    page.set_input_files("#file", image)
                    page.wait_for_timeout(1500)
                report(page, moves, resolution)
                browser.close()
        finally:
            server.terminate()
            server.wait()


def exported(out: Path) -> Path:
    weights = Path(__file__).parent.parent / "evaluate" / "weights" / "scenes_resnet_inr"
    saccade("export", "--checkpoint", str(weights), "--out", str(out))
    return out


def saccade(*arguments: str) -> None:
    subprocess.run([*PROGRAM, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


PROGRAM = [sys.executable, "-c", "from saccade.cli.main import main; main()"]


def started(bundle: Path) -> tuple[subprocess.Popen[str], str]:
    """A server, and where it listens."""
    server = subprocess.Popen(
        [*PROGRAM, "serve", str(bundle), "--port", "0", "--no-grpc"], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"Ready: (http://\S+)", line):
            return server, found[1]
    raise click.ClickException("the server did not start")


def report(page: Any, moves: int, resolution: int) -> None:
    positions: list[int] = page.evaluate("[32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]")
    page.locator("#resolution").fill(str(positions.index(resolution)))
    page.wait_for_timeout(600)
    page.evaluate(WATCH)
    print(f"{'slider':<26}{'moves':>6}{'shown':>7}{'p50 ms':>9}{'p95 ms':>9}{'largest':>9}")
    row(page, "area, one by one", "area", ["ArrowRight", "ArrowLeft"], moves, run=16, pause=350)
    row(page, "area, 30 a second", "area", ["ArrowRight", "ArrowLeft"], 4 * moves, run=40, pause=33)
    row(page, "resolution, one by one", "resolution", ["ArrowLeft", "ArrowRight"], moves, run=3, pause=350)


def row(page: Any, name: str, slider: str, keys: list[str], moves: int, *, run: int, pause: float) -> None:
    """Move a slider to and fro, so many steps each way."""
    page.focus(f"#{slider}")
    page.evaluate("window.moves = [], window.events = 0")
    began = time.monotonic()
    for move in range(moves):
        page.keyboard.press(keys[move // run % 2])
        page.wait_for_timeout(max(1, (began + (move + 1) * pause / 1e3 - time.monotonic()) * 1e3))
    page.wait_for_timeout(700)
    times: NDArray[np.float64] = np.array(page.evaluate("window.moves"))
    p50, p95 = np.percentile(times, (50, 95))
    print(f"{name:<26}{page.evaluate('window.events'):>6}{len(times):>7}{p50:>9.1f}{p95:>9.1f}{times.max():>9.1f}")


if __name__ == "__main__":
    main()

"""The documentation's code: what is in its blocks, and how each command is made one that runs in seconds."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

LANGUAGES = {
    "console": "run",
    "python": "run",
    "text": "nothing to run",
    "sql": "DuckDB is no dependency of any extra",
}

SMALL = {  # a model of the documentation, and the small one of its family in its place
    r"torchvision:\w+": "python:documented_models:cnn",
    r"timm:vit_\w+": "python:documented_models:vit",
    r"python:my_model:build": "python:documented_models:cnn",
}

SHORT = {  # options that end a command in a second or two; the last one given counts
    ("train",): "--steps 2 --batch-size 4 --validate-every 0",
    ("bench",): "--seconds 0.1 --batch-sizes 1",
    ("bench", "serve"): "--seconds 0.5 --clients 1",
    ("evaluate",): "--count 3 --steps 4",
    ("scenes",): "--count 2",
    ("deploy",): "--force",
}
SHORT_IF = {  # the same for commands with an option
    ("explain", "--finetune"): "--finetune 1",
    ("explain", "--method inr"): "--steps 2",
    ("export", "--checkpoint"): "--overwrite",
    ("export", "--method"): "--overwrite",
}

PARSED = {  # commands that are read down to their options, but not run, and why
    r"^saccade serve": "runs until it is stopped; tests/accel/serve",
    r"--ray": "starts Ray, ten seconds; tests/accel/batch",
    r"s3://": "needs a bucket",
    r"--format tensorrt|--engine tensorrt|--target gpu|--devices": "needs GPUs",
    r"https://host|10\.0\.0\.1": "needs that host",
    r"^saccade export .*--precision": "the gate of a lower precision takes many runs; tests/cli/test_precision.py",
    r"^saccade .*--precision (int8|fp16)": "the small bundle holds no lower precision",
    r"^saccade bench .*--engine all": "opens every engine; tests/cli/test_bench.py",
    r"^saccade explain .*--engine openvino": "tests/accel/test_openvino_engine.py",
    r"runs/(own|parts|any-class)": "as the commands before them; tests/cli/test_train.py",
    r"--checkpoint runs/inr --out": "seven seconds; tests/cli/test_train_inr.py",
    r"^saccade tune": "tries some twenty sessions; tests/cli/test_bench.py",
}
PARSED_PAGES = {"cli.md": "written from --help; the commands run on the pages that explain them"}

OTHER_PACKAGES = {"openvino_xai", "hypothesis"}  # that a page has installed beside the extras

SKIPPED_PYTHON = {  # blocks that are compiled, but not run, and why
    r"^import ray": "starts Ray; tests/accel/batch",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, the line of its first line, the language, and what is inside."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found, opened, language = [], 0, ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if not opened:
            opened, language = number, line[3:].strip()
        else:
            found.append(Block(page, opened + 1, language, "\n".join(lines[opened : number - 1])))
            opened = 0
    assert not opened, f"{page.name}:{opened} opens a block that nothing closes"
    return found


def commands(block: Block) -> list[str]:
    """The commands of a console block; one that goes on in the next line ends with an open quote or a backslash."""
    found: list[str] = []
    waiting = ""
    for line in block.text.splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        try:
            shlex.split(waiting.rstrip("\\") if waiting.endswith("\\") else waiting, comments=True)
        except ValueError:
            continue
        if not waiting.endswith("\\"):
            found.append(waiting)
            waiting = ""
    assert not waiting, f"{block}: a command that does not end"
    return [command for command in found if command.strip()]


def arguments(command: str) -> list[str]:
    """The words of a command before a pipe, without variables that are set for it."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    words = words[: words.index("|")] if "|" in words else words
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def short(words: list[str]) -> list[str]:
    """The words of a ``saccade`` command, with a small model, and with options that make it end soon."""
    swapped = []
    for word in words:
        for pattern, small in SMALL.items():
            word = small if re.fullmatch(pattern, word) else word
        swapped.append(word)
    text = " ".join(words)
    for start, options in SHORT.items():
        longer = ("bench", "serve")
        if tuple(words[1 : 1 + len(start)]) == start and not (start == ("bench",) and tuple(words[1:3]) == longer):
            swapped += options.split()
    for (name, option), options in SHORT_IF.items():
        if words[1] == name and option in text:
            swapped += options.split()
    return swapped


def why_not_run(page: Path, command: str) -> str:
    """Why a command is not run; empty where it is."""
    if page.name in PARSED_PAGES:
        return PARSED_PAGES[page.name]
    return next((why for pattern, why in PARSED.items() if re.search(pattern, command)), "")

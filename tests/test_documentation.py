"""Every block of code in README.md and docs/ runs, or is read as far as it can be; links lead somewhere; the page of
commands is what they say today.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import click
import documented
import numpy as np
import pytest
import torch
import write_cli
from documented import PAGES, ROOT, Block
from PIL import Image
from running_server import running

from saccade.accel.serve.config import ServeConfig
from saccade.cli.main import saccade as program
from saccade.methods.gradient import config, explainer

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.xdist_group("served")  # whose process has the bundles


EXPORT = (
    "saccade export --method gradcam --model torchvision:resnet18 --weights mymodel.pth --classes names.txt "
    "--data photos/ --out bundle"
)
_ran: set[str] = set()  # a command that stands on several pages runs once


@pytest.fixture(scope="module")
def workplace(served_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reader would stand: photographs, a bundle, a model's weights."""
    import documented_models

    folder = tmp_path_factory.mktemp("documentation")
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for name in ["cat", "dog", "pets", *(f"photos/{index}" for index in range(18))]:
        coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg")
    (folder / "names.txt").write_text("\n".join(documented_models.CLASSES))
    torch.save(documented_models.cnn().state_dict(), folder / "mymodel.pth")
    with contextlib.chdir(folder):  # the README's own command, so that all pages have the bundle that it makes
        words = documented.short(documented.arguments(EXPORT))
        program.main(words[1:], standalone_mode=False)
    _ran.add(EXPORT)
    for name, kept in (("functions", "areas"), ("parts", "areas"), ("any-class", "classes")):
        shutil.copytree(served_bundles[kept], folder / name)
    return folder


@pytest.fixture(scope="module")
def server(workplace: Path) -> Iterator[str]:
    """A server of the bundle, host and port."""
    with running({"bundle": workplace / "bundle"}, ServeConfig(port=0, grpc_port=0, workers=1)) as found:
        yield found.url


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_code_runs(
    page: Path, workplace: Path, server: str, saccade_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", [str(workplace), *sys.path])
    for block in documented.blocks(page):
        assert block.language in documented.LANGUAGES, f"{block}: what is a block of '{block.language}'?"
        if block.language == "console":
            for command in documented.commands(block):
                _try_command(block, command, server, saccade_command)
        elif block.language == "python":
            _try_python(block, server, monkeypatch)


def _try_command(block: Block, command: str, server: str, saccade_command: Run) -> None:
    words = documented.arguments(command)
    where = f"{block}: {command}"
    if words[0] == "pip":
        _check_pip(where, words)
    elif words[0] == "make":
        targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), where
    elif words[0] == "python":
        _check_script(where, words)
    elif words[0] == "curl":
        if shutil.which("curl") and command not in _ran:
            there = command.replace("localhost:8000", server)
            answer = subprocess.run(["bash", "-c", there], capture_output=True, text=True, check=True).stdout
            assert '"outputs"' in answer, where
            _ran.add(command)
    else:
        assert words[0] == "saccade", f"{where}: what is '{words[0]}'?"
        _read(where, words)
        if not documented.why_not_run(block.page, command) and command not in _ran:
            short = [word.replace("localhost:8000", server) for word in documented.short(words)]
            code, out, err = saccade_command(*short[1:])
            assert code == 0, f"{where}\n{out}\n{err}"
            _ran.add(command)


def _read(where: str, words: list[str]) -> None:
    """Read a command down to its last option, without running it."""
    command: click.Command = program
    context = click.Context(command, info_name="saccade")
    rest = words[1:]
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, where
        command, rest = found, rest[1:]
    try:
        command.make_context(command.name, list(rest), context)
    except click.exceptions.Exit:  # of --help
        pass
    except click.ClickException as error:
        pytest.fail(f"{where}: {error.format_message()}")


def _check_pip(where: str, words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[1] == "install", where
    for word in words[2:]:
        asked = re.fullmatch(r"(?:saccade|\.)(?:\[([\w,-]+)\])?", word)
        if asked:
            assert set((asked[1] or "").split(",")) - {""} <= set(extras), where
        else:
            known = {"-c", "constraints.txt", "-e", "--no-deps"} | documented.OTHER_PACKAGES
            assert word in known, f"{where}: what is '{word}'?"


def _check_script(where: str, words: list[str]) -> None:
    script = ROOT / words[1]
    assert script.is_file(), where
    text = script.read_text()
    for word in words[2:]:
        if word.startswith("--"):
            assert f'"{word}"' in text, f"{where}: {words[1]} has no {word}"


def _try_python(block: Block, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = block.text.replace("localhost:8000", server)
    for pattern, small in documented.SMALL.items():
        text = re.sub(pattern, small, text)
    code = compile(text, str(block), "exec")
    if any(re.search(pattern, text, re.MULTILINE) for pattern in documented.SKIPPED_PYTHON):
        return
    module = types.ModuleType(f"documented_{block.page.stem.replace('-', '_')}_{block.line}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with contextlib.ExitStack() as left_as_found:
        for registry in (config.METHODS, explainer._ON_MAPS, explainer._LAYERS):  # which a page may extend
            left_as_found.enter_context(mock.patch.dict(registry))
        exec(code, module.__dict__)


def test_the_bundle_of_all_pages_is_made_as_the_readme_says() -> None:
    assert f"{EXPORT}\n" in (ROOT / "README.md").read_text()


def test_what_is_not_run_is_there_and_every_reason_has_a_use() -> None:
    commands = [
        command
        for page in PAGES
        if page.name not in documented.PARSED_PAGES
        for block in documented.blocks(page)
        if block.language == "console"
        for command in documented.commands(block)
    ]
    for pattern in documented.PARSED:
        assert any(re.search(pattern, command) for command in commands), f"no command is like {pattern}"
    for why in documented.PARSED.values():
        for path in re.findall(r"tests/\S+", why):
            assert (ROOT / path).exists(), path


def test_the_page_of_commands_is_what_they_say() -> None:
    assert write_cli.PAGE.read_text(encoding="utf-8") == write_cli.page(), "run: python docs/write_cli.py"


def test_links_and_pictures_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"https?://", target):
                continue
            path, _, anchor = target.partition("#")
            file = page if not path else (page.parent / path).resolve()
            assert file.exists(), f"{page.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in [_slug(heading) for heading in headings], f"{page.name} links to {target}"


def _slug(heading: str) -> str:
    words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
    return re.sub(r"[\s-]+", "-", words)


def test_public_names_are_all_on_the_pages_of_the_reference() -> None:
    import saccade
    from saccade.evaluate import metrics

    python = (ROOT / "docs" / "python.md").read_text() + (ROOT / "docs" / "bundle.md").read_text()
    missing = [name for name in saccade.__all__ if f"::: saccade.{name}\n" not in python]
    assert missing == ["SaccadeError", "__version__"], "the errors are listed together"
    shown = re.findall(r"::: saccade\.evaluate\.metrics\.(\w+)", (ROOT / "docs" / "metrics.md").read_text())
    assert sorted(shown) == sorted(metrics.__all__)


@pytest.mark.parametrize("name", ["saccade", "saccade.evaluate.metrics"])
def test_every_public_name_says_what_it_is(name: str) -> None:
    module = __import__(name, fromlist=["_"])
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert (thing.__doc__ or "").strip(), public


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-W", "default", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr + built.stdout
    commands = (tmp_path / "cli.html").read_text()
    for words, command in write_cli.commands():
        assert " ".join(words) in commands
        for option in command.params:
            assert isinstance(option, click.Argument) or option.opts[0] in commands
    outside = [
        (page.name, address)
        for page in tmp_path.glob("*.html")
        for address in re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', page.read_text())
    ]
    assert outside == [], "pages load nothing from elsewhere"

"""The wheel, the public names, the direction of imports, and an installation without PyTorch."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from environments import ROOT, build, tracked
from PIL import Image

import saccade

pytestmark = pytest.mark.xdist_group("packaging")  # one process builds the wheel

PACKAGE_FOLDERS = ("accel", "cli", "evaluate", "export", "kernels", "methods")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("built"))


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not re.search(r"\.dist-info/", name)}
    modules = {f"saccade/{name}" for name in tracked("*.py") if "/" not in name or name.startswith(PACKAGE_FOLDERS)}
    pages = ("cli/*.html", "accel/serve/playground/*")
    data = {f"saccade/{name}" for name in tracked("evaluate/weights/*", *pages, "py.typed")}
    assert inside == modules | data


def test_the_wheel_puts_nothing_else_at_the_top(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"saccade"}


def test_core_dependencies_are_few_and_hold_no_torch(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    needed = re.findall(r"^Requires-Dist: ([A-Za-z0-9_.-]+)[^;\n]*$", archive.read(metadata).decode(), re.MULTILINE)
    assert sorted(needed) == ["click", "numpy", "onnxruntime", "pillow", "pydantic", "rich"]


@pytest.mark.slow
def test_a_bundle_explains_where_only_the_core_is_installed(
    wheel: Path, tiny_bundle_kept: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    installed = subprocess.run(install, capture_output=True, text=True, check=False, timeout=280)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    for package in ("torch", "onnx", "scipy", "matplotlib"):
        assert subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode != 0
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(photo)
    command = python.parent / "saccade"
    done = subprocess.run(
        [command, "explain", photo, "--bundle", tiny_bundle_kept, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "photo.overlay.png").exists()
    assert json.loads((tmp_path / "out" / "results.jsonl").read_text())["class"] in ("ant", "bee", "cat", "dog", "emu")
    assert subprocess.run([command, "verify", tiny_bundle_kept], capture_output=True, check=False).returncode == 0
    refused = subprocess.run(
        [command, "export", "--checkpoint", tmp_path, "--out", tmp_path / "b"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "pip install 'saccade[train]'" in refused.stderr
    assert subprocess.run([command, "demo"], capture_output=True, text=True, check=False, cwd=tmp_path).returncode == 1


def test_importing_saccade_loads_neither_torch_nor_onnxruntime() -> None:
    code = "import saccade, sys; print(sorted({'torch', 'onnxruntime', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_a_sorted_list_and_all_are_there() -> None:
    assert list(saccade.__all__) == sorted(saccade.__all__)
    assert set(saccade.__all__) - {"__version__"} == set(saccade._HOMES)
    for name in saccade.__all__:
        assert getattr(saccade, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'explode'"):
        _ = saccade.explode


def test_every_public_name_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in saccade.__all__ if f"`{name}`" not in readme and name != "__version__"] == []


def test_the_changelog_knows_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == saccade.__version__


def test_imports_inside_the_package_are_relative() -> None:
    for name in tracked(*(f"{folder}/*.py" for folder in PACKAGE_FOLDERS), "errors.py", "contracts.py"):
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not any(module.split(".")[0] in ("saccade", *PACKAGE_FOLDERS) for module in modules), (
                f"{name}: {modules}"
            )


@pytest.mark.parametrize("folder", PACKAGE_FOLDERS)
def test_a_folder_cannot_be_imported_as_a_package_of_its_own(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"import it as 'saccade.{folder}'" in done.stderr


def test_every_package_folder_is_listed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        listed = tomllib.load(stream)["tool"]["setuptools"]["packages"]
    folders = {Path(name).parent.as_posix() for name in tracked(*(f"{folder}/*.py" for folder in PACKAGE_FOLDERS))}
    assert set(listed) == {"saccade", *("saccade." + folder.replace("/", ".") for folder in folders)}


def test_modules_stay_readable() -> None:
    for name in tracked("*.py"):
        if not name.startswith("tests/"):
            assert len((ROOT / name).read_text().splitlines()) <= 400, name


def test_committed_weights_are_small_and_say_how_they_were_trained() -> None:
    weights = ROOT / "evaluate" / "weights"
    for file in weights.rglob("*.safetensors"):
        assert file.stat().st_size <= 4_000_000, file.name
    for file in weights.glob("*.safetensors"):
        record = json.loads(file.with_suffix(".json").read_text())
        assert record["command"].startswith("python examples/train_scenes.py")
        assert isinstance(record["seed"], int)

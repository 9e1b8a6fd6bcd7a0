"""Arguments of every command: its parameters are enumerated, their values drawn by type and name."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
from hypothesis import strategies as st

from saccade.cli.bench_serve import bench_serve
from saccade.cli.main import COMMANDS, main, saccade

from .drawn import drawn, odd_numbers, odd_texts
from .images import seed_images
from .place import case_folder, refuse_escapes, tiny_bundle
from .target import Reached, Target, first_words

__all__ = ["COMMAND_LINES"]

WORK_BEGINS = (  # what takes long and is tested elsewhere: a case that comes so far is answered
    "saccade.cli.demo._methods",
    "saccade.cli.training._train",
    "saccade.cli.inr.fit_masks",
    "saccade.cli.inr.several_masks",
    "saccade.cli.finetune.finetune",
    "saccade.evaluate.scenes_folder.write_scenes",
    "saccade.export.write_bundle.export_gradient",
    "saccade.export.write_bundle.export_trained",
    "saccade.accel.bench.bench_engines",
    "saccade.accel.tune.tune",
    "saccade.accel.serve.server.run_server",
    "saccade.accel.batch.ray_data.connected",
    "saccade.cli.evaluation.evaluate_contenders",
)
INPUTS = (
    "bundle",
    "photo.png",
    "photos",
    "bad.jpg",
    "empty",
    "tar.tar",
    "names.txt",
    "a[/b].png",
    "no[/such]",
    "model.py",
)
OUTPUTS = ("out", "out/deep/er", "bundle", "photo.png", "/dev/null/x", "/proc/nothing", "[/red]", "photos", "-")
WRITTEN = ("out", "dst", "repository", "report", "plot", "folder", "overlays", "timing_cache", "engine_cache")
WORDS = {
    "method": ("gradcam", "layercam", "dix", "iia", "ig", "rollout", "inr", "ltx", "help", "gradcan"),
    "spec": (
        "python:model:build",
        "python:model:nothing",
        "python:nowhere:x",
        "hf:./empty",
        "timm:nope",
        "torchvision:nope",
        "scenes:resnet",
        "x",
        "python:model",
    ),
    "backbone": ("python:model:build", "timm:nope", ""),
    "weights": ("random", "pretrained", "photo.png", "bundle/explainer.onnx", "none.pth", "names.txt"),
    "targets": ("ant", "cat", "0", "4", "5", "-1", "ant,bee", "[/red]"),
    "target": ("predicted", "label", "cpu", "gpu"),
    "engine": ("onnx", "onnx", "openvino", "tensorrt", "torch"),
    "engines": ("onnx", "all", "onnx,openvino", "x"),
    "precisions": ("fp32", "all", "fp16", "int8", "x"),
    "providers": ("cpu", "CPUExecutionProvider", "cuda", "x"),
    "provider_options": ("cpu.a=b", "cuda.enable_cuda_graph=1", "x.y", "cpu.arena_extend_strategy=x"),
    "against": ("random", "center", "grad-cam", "bundle", "nope", "integrated-gradients"),
    "names": ("insertion", "insertion,deletion", "all", "help", "nope", "sic", "pointing"),
    "metrics": ("insertion", "all"),
    "compare": ("torch-eager", "nope", ""),
    "data": ("photos", "empty", "scenes", "photo.png", "nowhere"),
    "checkpoint": ("checkpoint", "bundle", "empty", "nowhere"),
    "calibrate": ("photos", "scenes", "nowhere"),
    "layers": ("late", "early", "nope", "", "head"),
    "src": (
        "photos",
        "tar.tar",
        "*.png",
        "nowhere",
        "{000..3}.png",
        "{9..1}.png",
        "x://y",
        "file:///nowhere",
        "photos/*",
        "[",
        "{a,b",
    ),
    "url": (
        "http://localhost:1",
        "localhost:1",
        "127.0.0.1:1",
        "[::1]:1",
        "http://",
        "x",
        "grpc://localhost:1",
        "http://localhost:99999",
        "http://localhost:1/x?y",
    ),
    "server": ("http://localhost:1", "grpc://localhost:1", "x", "http://[", "localhost:1"),
    "headers": ("A: b", "A", "a b: c", "X:"),
    "baselines": ("blur", "black", "#808080", "#xyz", "nope", "mean", "pyramid"),
    "bundles": (
        "bundle",
        "a=bundle",
        "a=bundle b=bundle",
        "=bundle",
        "a=",
        "empty",
        "photo.png",
        "..=bundle",
        "a/b=bundle",
    ),
    "host": ("127.0.0.1", "localhost", "999.1.1.1", "::1", ""),
    "image_column": ("image", "nope"),
    "id_column": ("url", "nope"),
    "ray_address": ("local", "127.0.0.1:1"),
    "gpus": ("sm89", "sm999", "x"),
    "outputs": ("mask", "probabilities,mask_png", "x"),
    "classes": ("names.txt", "empty", "photo.png"),
    "storage_uri": ("s3://x", "x"),
    "device": ("cpu", "cuda", "x"),
    "paths": ("photo.png", "photos", "bad.jpg", "a[/b].png", "empty", "nowhere.png", "names.txt", "."),
}
OFTEN = ("bundle", "bundles", "src", "dst", "paths", "out", "repository", "folder", "url")
SOMETIMES = ("data", "spec", "method", "checkpoint", "metrics", "engine")
ALONE = ("num_nodes", "devices")
"""Of how many take part: who is not alone waits for the others."""


def _commands() -> dict[tuple[str, ...], click.Command]:
    """Every command by the words that call it."""
    found: dict[tuple[str, ...], click.Command] = {("bench", "serve"): bench_serve}
    context = click.Context(saccade)
    for name in COMMANDS:
        command = saccade.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            found |= {(name, inner): each for inner, each in command.commands.items()}
        else:
            found[name,] = command
    return found


def _values(parameter: click.Parameter, fitting: bool) -> st.SearchStrategy[str]:
    """What may be written for a parameter: what fits or nearly fits, and else also what does not at all."""
    kind, name = parameter.type, parameter.name or ""
    odd = st.one_of(odd_texts.map(lambda text: text.replace("\0", "_")), odd_numbers.map(str))  # as arguments can be
    if fitting:
        odd = st.sampled_from(WORDS.get(name, ("1",)))
    if name in ALONE:
        return st.sampled_from(["1", "0", "-1", "1.5", "x"])
    if name in WRITTEN:
        return st.sampled_from(OUTPUTS)
    if name in WORDS:
        return st.one_of(st.sampled_from(WORDS[name]), st.sampled_from(WORDS[name]), odd)
    if isinstance(kind, click.Choice):
        return st.one_of(*[st.sampled_from(list(kind.choices))] * 5, odd)
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return st.one_of(st.sampled_from(["1", "2", "3", "0.5", "1e-3"]), odd_numbers.map(str), odd)
    if isinstance(kind, click.Path):
        return st.one_of(st.sampled_from(INPUTS), st.sampled_from(INPUTS), st.just("bundle") if fitting else odd)
    numbers = st.lists(odd_numbers.map(str), min_size=1, max_size=4).map(",".join)
    return st.one_of(numbers, st.sampled_from(["0.1", "0.05,0.1", "0,0,0.5,0.5", "32", "16x20", "1,8,32"]), odd)


@st.composite
def _line(draw: st.DrawFn, commands: dict[tuple[str, ...], click.Command]) -> list[str]:
    words = draw(st.sampled_from(sorted(commands)))
    line, behind, fitting = list(words), list[str](), draw(st.integers(0, 9)) < 6
    some, few = draw(st.sampled_from([(4, 2), (10, 4), (30, 10)]))  # per cent; many options seldom go together
    for parameter in commands[words].params:
        name = parameter.name or ""
        wanted = 90 if parameter.required or name in OFTEN else some if name in SOMETIMES else few
        if draw(st.integers(0, 99)) >= wanted:
            continue
        if isinstance(parameter, click.Argument):
            most = 2 if parameter.nargs == -1 else 1
            behind += [draw(_values(parameter, fitting)) for _ in range(draw(st.integers(1, most)))]
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            line.append(draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts])))
        else:
            line += [parameter.opts[0], draw(_values(parameter, fitting))]
    line += behind
    if draw(st.integers(0, 19)) == 0:
        line.insert(draw(st.integers(0, len(line))), draw(odd_texts).replace("\0", "_"))
    return line


@contextlib.contextmanager
def _stopped_where_work_begins() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in WORK_BEGINS:
            module, _, function = name.rpartition(".")
            stack.enter_context(mock.patch.object(importlib.import_module(module), function, side_effect=Reached))
        yield


def _prepare(folder: Path) -> None:
    tiny_bundle(folder)
    seeds = seed_images()
    (folder / "photos").mkdir()
    (folder / "empty").mkdir()
    (folder / "a[").mkdir()
    for name, content in (
        ("photo.png", seeds[4]),
        ("photos/1.png", seeds[4]),
        ("photos/2.jpg", seeds[10]),
        ("a[/b].png", b"x"),
    ):
        (folder / name).write_bytes(content)
    (folder / "bad.jpg").write_bytes(seeds[10][:60])
    (folder / "tar.tar").write_bytes(b"\0" * 1024)
    (folder / "names.txt").write_text("one\n[/red]\n\nthree\nfour\nfive\n")
    (folder / "model.py").write_text("from small_bundle import build_tiny as build\n")


def _run(case: bytes) -> str:
    line = [str(word) for word in json.loads(case)]
    if any(word.startswith("/") and word not in OUTPUTS and not word.startswith("/etc") for word in line):
        return "not tried: an absolute path"
    out, err = io.StringIO(), io.StringIO()
    with case_folder() as folder:
        _prepare(folder)
        before, arguments = os.getcwd(), sys.argv
        os.chdir(folder)
        sys.argv = ["saccade", *line]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _stopped_where_work_begins():
                main()
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.argv = arguments
            os.chdir(before)
            for name in ("model", "small_bundle"):
                sys.modules.pop(name, None) if name == "model" else None
        refuse_escapes(folder)
    return _kind(line, code, out.getvalue(), err.getvalue())


def _kind(line: list[str], code: Any, out: str, err: str) -> str:
    """What an exit code means, and whether what was said is what it should be."""
    name = line[0] if line and line[0] in COMMANDS else "no command"
    assert "Traceback" not in out + err, err
    assert code in (0, 1, 2), f"{line}: exit code {code}: {err}"
    if code == 2:
        assert "Usage: " in err, f"{line}: {err}"
        assert "Error: " in err, f"{line}: {err}"
        return f"usage error: {name}"
    if code == 1 and err.startswith("Error: "):
        messages.setdefault(first_words(err), err)
        assert err.count("\n") == 1, f"{line}: a message of several lines: {err}"
        return f"refused: {name}"
    if code == 1:  # an answer that is no success: some images failed, a gate did not pass
        assert (out + err).strip(), f"{line}: exit code 1 without a word"
        return f"answered, not well: {name}"
    return f"answered: {name}"


messages: dict[str, str] = {}
"""Of refusals, as in `Tried`."""


def _cases(seed: int) -> Iterator[bytes]:
    return drawn(_line(_commands()), seed)


COMMAND_LINES = Target("commands", _cases, _run, ".json")

"""Options that several commands share, so that a flag means the same everywhere."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

__all__ = [
    "Areas",
    "BatchSizes",
    "Box",
    "Count",
    "EngineOptions",
    "Headers",
    "ImageSize",
    "Names",
    "Number",
    "ProviderOption",
    "any_json",
    "bundle_argument",
    "by_provider",
    "engine_options",
    "megapixels_option",
    "read_class_names",
    "resolve_model",
    "runtime_options",
]

_MOST = 2**31 - 1  # of whatever is counted
SHORT_SPECS = {
    "scenes:resnet": "python:saccade.evaluate.scenes_models:resnet",
    "scenes:vit": "python:saccade.evaluate.scenes_models:vit",
    "scenes:context": "python:saccade.evaluate.scenes_models:context",
}


def resolve_model(spec: str) -> str:
    """A model spec with the short names of the project's own models spelled out."""
    return SHORT_SPECS.get(spec, spec)


def read_class_names(file: Path | None) -> list[str] | None:
    """Class names, one per line; None without a file.

    Raises:
        UsageError: the file cannot be read.
    """
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        from ..errors import UsageError

        raise UsageError(f"cannot read the class names in '{file}': {error}") from None
    return [line.strip() for line in lines if line.strip()]


def any_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``: the result on stdout for programs, nothing else."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")(function)


def megapixels_option(default: float = 100.0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--max-megapixels``, which the command gets as ``max_megapixels``."""
    return click.option(
        "--max-megapixels",
        type=Number(min=0.001),
        default=default,
        show_default=True,
        metavar="MP",
        help="Refuse larger images.",
    )


def bundle_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """The bundle as the command's argument."""
    return click.argument("bundle", type=click.Path(path_type=Path))(function)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What the command line says of the engine."""

    engine: str
    providers: tuple[str, ...]
    provider_options: tuple[tuple[str, str, str], ...]
    threads: int | None
    precision: str

    def settings(self) -> dict[str, Any]:
        """As `open_engine` takes them."""
        return {
            "engine": self.engine,
            "providers": self.providers or None,
            "provider_options": by_provider(self.provider_options) or None,
            "threads": self.threads,
            "precision": self.precision,
        }


def by_provider(options: Sequence[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    """Options of execution providers, by provider and key."""
    found: dict[str, dict[str, str]] = {}
    for provider, key, value in options:
        found.setdefault(provider, {})[key] = value
    return found


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--engine``, ``--provider``, ``--provider-option``, ``--threads`` and ``--precision``, which the command gets as
    one `EngineOptions` called ``engine``.
    """
    decorators = (
        click.option(
            "--engine",
            default="onnx",
            show_default=True,
            metavar="NAME",
            help="Engine that runs the bundle: onnx (ONNX Runtime), openvino (processors), tensorrt (NVIDIA GPUs, with "
            "the plans of export --format tensorrt).",
        ),
        runtime_options,
        click.option(
            "--precision",
            type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
            default="fp32",
            show_default=True,
            help="Which graph of the bundle: lower precisions are those of export --precision. With explain "
            "--finetune, of the classifier's passes: bf16 makes large models about three times as fast where the "
            "processor has it.",
        ),
    )

    @functools.wraps(function)
    def packed(*arguments: Any, **options: Any) -> Any:
        names = EngineOptions.__dataclass_fields__
        engine = EngineOptions(**{name: options.pop(name) for name in names})
        return function(*arguments, engine=engine, **options)

    wrapped: Callable[..., Any] = packed
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    return wrapped


def runtime_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--provider``, ``--provider-option`` and ``--threads``."""
    decorators = (
        click.option(
            "--provider",
            "providers",
            multiple=True,
            metavar="NAME",
            help="Of engine onnx: execution provider, such as cpu or cuda; repeat for a priority order. [default: cpu]",
        ),
        click.option(
            "--provider-option",
            "provider_options",
            multiple=True,
            type=ProviderOption(),
            metavar="NAME.KEY=VALUE",
            help="An option of a provider, as ONNX Runtime lists them, such as cuda.enable_cuda_graph=1; repeatable.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(1, 4096),
            metavar="N",
            help="Threads that compute, no more than cores. [default: what saccade tune found, or all cores]",
        ),
    )
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


class Number(click.FloatRange):
    """A number in a range, which neither infinity nor what is not a number lies in, nor what overflows as bytes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a finite number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"'{value}' is not a finite number", param, ctx)
        if found > _MOST:
            self.fail(f"'{value}' is too much; the most is {_MOST}", param, ctx)
        return found


class Count(click.IntRange):
    """A whole number from so many on; what no machine counts to is refused, rather than overflow somewhere."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        found = super().convert(value, param, ctx)
        if found > _MOST:
            self.fail(f"'{value}' is too much; the most is {_MOST}", param, ctx)
        return found


class ProviderOption(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """An option of an execution provider as ``cuda.enable_cuda_graph=1``."""

    name = "option"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str, str]:
        """Take it apart."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\w+)\.(\w+)=(.*)", str(value))
        if not found:
            self.fail(f"'{value}' is not PROVIDER.KEY=VALUE; write for example cuda.enable_cuda_graph=1", param, ctx)
        return found[1], found[2], found[3]


class Headers(click.ParamType):  # type: ignore[type-arg]  # as above
    """An HTTP header as ``Name: value``."""

    name = "header"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Take it apart."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e]*)", str(value))
        if not found:
            self.fail(f"'{value}' is not NAME: VALUE; write for example 'Authorization: Bearer KEY'", param, ctx)
        return found[1], found[2]


class BatchSizes(click.ParamType):  # type: ignore[type-arg]  # as above
    """Batch sizes as ``1,8,32``."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse a comma-separated list of positive integers."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"'{value}' is not a list of batch sizes; write for example 1,8,32", param, ctx)
        return sizes


class Names(click.ParamType):  # type: ignore[type-arg]  # as above
    """Names as ``onnx,openvino``; nothing for none."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split at commas."""
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


class ImageSize(click.ParamType):  # type: ignore[type-arg]  # as above
    """Height and width as ``480x640``, or one number for both."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse one or two positive integers."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", str(value))
        if not found:
            self.fail(f"'{value}' is not a size in pixels; write 448, or 480x640 for height and width", param, ctx)
        return int(found[1]), int(found[2] or found[1])


class Box(click.ParamType):  # type: ignore[type-arg]  # as above
    """A part of an image as ``left,top,right,bottom``, each a fraction of it."""

    name = "box"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse four numbers."""
        if isinstance(value, tuple):
            return value
        try:
            left, top, right, bottom = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not left,top,right,bottom; write for example 0.25,0,0.75,0.5", param, ctx)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            self.fail(f"'{value}' is not a part of the image: fractions left < right and top < bottom", param, ctx)
        return left, top, right, bottom


class Areas(click.ParamType):  # type: ignore[type-arg]  # as above
    """Areas of masks as ``0.05,0.1``."""

    name = "areas"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse a comma-separated list of numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of areas; write for example 0.05,0.1", param, ctx)

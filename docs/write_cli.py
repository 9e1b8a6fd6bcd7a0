"""The page of all commands, from what they say of themselves: ``python docs/write_cli.py`` writes docs/cli.md.

A test fails as long as the page is not what the commands say.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from saccade.cli.bench_serve import bench_serve
from saccade.cli.main import saccade

__all__ = ["commands", "page"]

PAGE = Path(__file__).parent / "cli.md"
_HEAD = """\
# Commands

Written by `python docs/write_cli.py` from what each command says with `--help`. Errors of the user's are one sentence
and exit code 1, wrong usage is exit code 2, Ctrl-C 130. Results go to stdout and progress to stderr; `--json` prints
the result for programs.
"""


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, those of groups behind the group: the words that call each, and the command."""

    def below(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        yield words, command
        if command.name == "bench":  # which finds its sub-command by itself, since a bundle may stand there too
            yield (*words, "serve"), bench_serve
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None, "a command that is listed is there"
                yield from below(inner, (*words, name))

    yield from below(saccade, ("saccade",))


def page() -> str:
    """The page, in Markdown."""
    sections = [_section(words, command) for words, command in commands() if len(words) > 1]
    return "\n".join([_HEAD, *sections])


def _section(words: tuple[str, ...], command: click.Command) -> str:
    heading = f"{'#' * len(words)} {' '.join(words)}\n"
    told = list(_told(inspect.cleandoc(command.help or "")))
    arguments = [_argument(p) for p in command.params if isinstance(p, click.Argument)]
    rest = ["COMMAND", "[ARGS]..."] if isinstance(command, click.Group) else []
    usage = f"```text\n{' '.join([*words, '[OPTIONS]', *arguments, *rest])}\n```\n"
    rows = [_row(p) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    table = ["| option | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([heading, usage, *told, *table])


def _argument(argument: click.Argument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    return name if argument.metavar or argument.nargs == 1 else f"{name}..."


def _told(text: str) -> Iterator[str]:
    r"""A command's description; what click keeps as it is behind ``\b`` are examples, or stays as it is too."""
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if lines[0] != "\b":
            yield _escaped(" ".join(line.strip() for line in lines)) + "\n"
            continue
        if lines[1].startswith("Example"):
            examples = "\n".join(line.strip() for line in lines[2:])
            yield f"```console\n{examples}\n```\n"
        else:
            yield "```text\n" + "\n".join(lines[1:]) + "\n```\n"


def _row(option: click.Option) -> str:
    spelled = ", ".join(f"`{name}`" for name in (*sorted(option.opts, key=len), *option.secondary_opts))
    if not option.is_flag:
        choices = ", ".join(getattr(option.type, "choices", ()))
        value = (option.metavar or option.type.name.split()[0].upper()).replace("|", "&#124;")
        spelled += f" {choices}" if choices and not option.metavar else f" <code>{value}</code>"
    told = _escaped(" ".join((option.help or "").split()))
    if option.show_default and not option.is_flag and option.default not in (None, ()):
        default = option.default if isinstance(option.default, tuple) else (option.default,)
        told += f" [default: {', '.join(map(str, default))}]"
    told = re.sub(r"\[default: (.*)\]$", r"*(default: \1)*", told)
    return f"| {spelled} | {told}{' **required**' if option.required else ''} |"


def _escaped(text: str) -> str:
    """Text in which Markdown reads no signs of its own, also in a table; options become code."""
    text = text.replace("|", "&#124;").replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"(?<![\w-])--[a-z][a-z0-9-]*", r"`\g<0>`", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

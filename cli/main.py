"""The ``saccade`` command: a table of commands, each loaded when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from .. import __version__
from ..errors import SaccadeError

__all__ = ["main", "saccade"]

COMMANDS = {
    "explain": "explain:explain",
    "batch": "batch:batch",
    "serve": "serve:serve",
    "train": "train:train",
    "export": "export:export",
    "verify": "verify:verify",
    "deploy": "deploy:deploy",
    "bench": "bench:bench",
    "tune": "tune:tune",
    "evaluate": "evaluate:evaluate",
    "scenes": "scenes:scenes",
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
}


class LazyGroup(click.Group):
    """Finds its commands by name in `COMMANDS` and imports one command's module at a time; they import only click."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f".{module}", __package__), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Suggest the nearest command to an unknown one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from ..errors import suggest

            raise click.UsageError(f"{error.message.rstrip('.')}: {suggest(args[0], list(COMMANDS))}", ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="saccade")
def saccade() -> None:
    """An explanation with every prediction, at nearly the cost of the prediction.

    \b
    Try it:               saccade demo
    Your own classifier:  saccade export --method gradcam --model torchvision:resnet50 --out bundle
    Explain images:       saccade explain photo.jpg --bundle bundle
    Nearly for free:      saccade train ltx --model torchvision:resnet50 --data PHOTOS --out runs/ltx
                          saccade export --checkpoint runs/ltx --out bundle
    """


def main() -> None:
    """Run the command line: errors of the user's become one line and exit code 1, wrong usage exit code 2."""
    try:
        code = saccade.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SaccadeError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nStopped.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:  # a disk that fails, a name that is too long, wherever it was met
        named = isinstance(error.filename, (str, bytes)) and error.filename
        where = f"'{os.fsdecode(error.filename)}' cannot be used: " if named else "the system refused: "
        reason = f"{where}{error.strerror or error}; check that it is there, that the disk works, and who may use it"
        click.echo(f"Error: {SaccadeError(reason)}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)

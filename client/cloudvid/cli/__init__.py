"""The command line: a view of the library. Errors become text and exit codes here and nowhere else.

A module has the commands on one subject; `options` declares what several of them take, `views` and `status` how a batch
and a server are shown. What another program could need belongs in the library below.

Exit codes: 0 all done, 1 some scenes failed, 2 usage or invalid input (nothing was sent), 3 the server cannot be
reached or is not ready, 130 interrupted.
"""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cloudvid.cli import inspect, run, scenes, server, single
from cloudvid.endpoints import errors
from cloudvid.endpoints.answers import plain
from cloudvid_schema import __version__

app = typer.Typer(
    name="cloudvid",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),  # --num_inference_steps, as in a scene file
    },
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cloudvid {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Turn files of scene descriptions into pictures and clips, on your own model server."""


app.command("run")(run.run)
app.command("plan")(scenes.plan)
app.command("validate")(scenes.validate)
app.command("schema")(scenes.schema)
app.command("init")(scenes.init)
app.command("image")(single.image)
app.command("video")(single.video)
app.command("inspect")(inspect.inspect)
app.command("gallery")(scenes.gallery)
app.command("ps")(server.ps)
app.command("cancel")(server.cancel)
app.command("scale")(server.scale)
app.command("wait")(server.wait)
app.command("doctor")(server.doctor)


def _prepare_streams() -> None:
    """Make any text printable: a path need not be UTF-8, nor a console show every letter, nor a stream be open."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line."""
    _prepare_streams()
    try:
        app()
    except errors.CloudVidError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        if isinstance(error, errors.ServerUnavailable) and error.log:
            print("the end of its log:", *map(plain, error.log), sep="\n  ", file=sys.stderr)
        is_input = isinstance(error, errors.InvalidInput | errors.UnusableFolder)
        sys.exit(2 if is_input else 3 if isinstance(error, errors.ServerUnavailable) else 1)
    except KeyboardInterrupt:
        sys.exit(130)

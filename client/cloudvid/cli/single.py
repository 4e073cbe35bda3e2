"""Commands for one picture or one clip: image, video."""

import functools
import secrets
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from cloudvid.batch.toys import toy_note
from cloudvid.cli.options import LeaveRunning, takes_client, takes_parameters
from cloudvid.client import Client
from cloudvid.endpoints.answers import Generated, plain
from cloudvid_schema.files import check_writable
from cloudvid_schema.parameters import ImageToVideoParameters, TextToImageParameters
from cloudvid_schema.processes import interrupts
from cloudvid_schema.protocol import Progress, Stage, Started


def _output(name: str) -> Any:
    text = f"File to write; default: {name}, or the next free {_numbered(name, 2)}, ..."
    return typer.Option("--output", "-o", help=text, show_default=False)


def _numbered(name: str, number: int) -> str:
    return f"{Path(name).stem}_{number}{Path(name).suffix}"


_Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


@takes_client
@takes_parameters(TextToImageParameters, positional="prompt")
def image(
    client: Client,
    parameters: dict[str, Any],
    *,
    prompt: Annotated[str, typer.Argument(help="What the picture shows.", show_default=False)],
    output: Annotated[Path | None, _output("image.png")] = None,
    force: _Force = False,
    leave_running: LeaveRunning = False,
) -> None:
    """Make one picture from a prompt."""
    path = _target(output, "image.png", force)
    send = functools.partial(client.text_to_image, prompt, **parameters)
    _make(client, Stage.T2I, send, leave_running=leave_running, output=path, force=force)


@takes_client
@takes_parameters(ImageToVideoParameters)
def video(
    client: Client,
    parameters: dict[str, Any],
    *,
    picture: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP file.", show_default=False)],
    output: Annotated[Path | None, _output("video.mp4")] = None,
    force: _Force = False,
    leave_running: LeaveRunning = False,
) -> None:
    """Make one clip from a picture."""
    path = _target(output, "video.mp4", force)
    send = functools.partial(client.image_to_video, picture, **parameters)
    _make(client, Stage.I2V, send, leave_running=leave_running, output=path, force=force)


def _free(path: Path) -> Path:
    """The path, or where that is taken the next free number of it."""
    numbered = (path.with_name(_numbered(path.name, number)) for number in count(2))
    return path if not path.exists() else next(each for each in numbered if not each.exists())


def _target(output: Path | None, default: str, force: bool) -> Path:
    """Where to write, which is possible. A file is replaced only by `--force`; without a name, the next free one is
    taken.
    """
    suffix = Path(default).suffix
    if output is None:
        output = Path(default) if force else _free(Path(default))
    if output.suffix.lower() not in (suffix, "") or output.name == "-":
        raise typer.BadParameter(f"must end with {suffix}, which the file will be, got {output}", param_hint="--output")
    try:
        check_writable(output)
    except OSError as error:
        raise typer.BadParameter(f"{output} cannot be written ({error.strerror})", param_hint="--output") from None
    if output.exists() and not force:
        raise typer.BadParameter(f"{output} is there already; --force replaces it", param_hint="--output")
    return output


def _make(
    client: Client, stage: Stage, send: Callable[..., Generated], *, leave_running: bool, output: Path, force: bool
) -> None:
    """Make a file and write it; an interrupt cancels the job. A terminal shows how far it is, and how long it took."""
    job, began, console = f"cli.{secrets.token_hex(8)}", time.monotonic(), Console()
    columns = ("{task.description}", BarColumn(), TimeElapsedColumn())
    try:
        with interrupts(), Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            bar = bars.add_task("waiting", total=None)

            def show(event: Started | Progress) -> None:
                if isinstance(event, Progress):
                    text = f"{event.phase} {event.step}/{event.steps}"
                    bars.update(bar, description=text, completed=event.step, total=event.steps)

            result = send(job=job, on_event=show if console.is_terminal else None)
    except KeyboardInterrupt:
        is_cancelled = not leave_running and client.server.jobs.cancel_these([(job, stage)])
        print("interrupted; the job is cancelled" if is_cancelled else "interrupted", file=sys.stderr)
        raise
    if output.exists() and not force:
        output = _free(output)  # somebody else has written it meanwhile
    result.save(output)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    seconds = f", {time.monotonic() - began:.1f} s" if console.is_terminal else ""
    print(f"{output}  {len(result.data):,} bytes{seconds}, seed {result.seed}, {plain(result.model)}")
    if note := toy_note([result.model]):
        print(f"note: {note}")

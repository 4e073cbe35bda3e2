"""Commands for one picture or one clip: image, video."""

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cloudvid.batch.toys import toy_note
from cloudvid.cli.options import LeaveRunning, takes_client, takes_parameters
from cloudvid.client import Client
from cloudvid.endpoints.answers import Generated, plain
from cloudvid_schema.parameters import ImageToVideoParameters, TextToImageParameters
from cloudvid_schema.processes import interrupts
from cloudvid_schema.protocol import Stage

Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]


@takes_client
@takes_parameters(TextToImageParameters, positional="prompt")
def image(
    client: Client,
    parameters: dict[str, Any],
    prompt: Annotated[str, typer.Argument(help="What the picture shows.", show_default=False)],
    output: Output = Path("image.png"),
    leave_running: LeaveRunning = False,
) -> None:
    """Make one picture from a prompt."""
    _check_suffix(output, ".png")
    with _job(client, Stage.T2I, leave_running) as job:
        made = client.text_to_image(prompt, **parameters, job=job)
    _report(made, output)


@takes_client
@takes_parameters(ImageToVideoParameters)
def video(
    client: Client,
    parameters: dict[str, Any],
    picture: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP file.", show_default=False)],
    output: Output = Path("video.mp4"),
    leave_running: LeaveRunning = False,
) -> None:
    """Make one clip from a picture."""
    _check_suffix(output, ".mp4")
    with _job(client, Stage.I2V, leave_running) as job:
        made = client.image_to_video(picture, **parameters, job=job)
    _report(made, output)


@contextmanager
def _job(client: Client, stage: Stage, leave_running: bool) -> Iterator[str]:
    """The id of a job that an interrupt cancels."""
    job = f"cli.{secrets.token_hex(8)}"
    try:
        with interrupts():
            yield job
    except KeyboardInterrupt:
        if not leave_running:
            client.server.jobs.cancel_these([(job, stage)])
        print("interrupted" if leave_running else "interrupted; the job is cancelled", file=sys.stderr)
        raise


def _check_suffix(output: Path, suffix: str) -> None:
    """Refuse a name that says something else than what the file will be."""
    if output.suffix.lower() not in (suffix, ""):
        raise typer.BadParameter(f"must end with {suffix}, which the file will be, got {output}", param_hint="--output")


def _report(result: Generated, output: Path) -> None:
    result.save(output)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{output}  {len(result.data):,} bytes, seed {result.seed}, {plain(result.model)}")
    if note := toy_note([result.model]):
        print(f"note: {note}")

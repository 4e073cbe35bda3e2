"""Commands for one picture or one clip: image, video."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cloudvid.batch.toys import toy_note
from cloudvid.cli.options import takes_client, takes_parameters
from cloudvid.client import Client
from cloudvid.endpoints.answers import Generated, plain
from cloudvid_schema.parameters import ImageToVideoParameters, TextToImageParameters

Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]


@takes_client
@takes_parameters(TextToImageParameters, positional="prompt")
def image(
    client: Client,
    parameters: dict[str, Any],
    prompt: Annotated[str, typer.Argument(help="What the picture shows.", show_default=False)],
    output: Output = Path("image.png"),
) -> None:
    """Make one picture from a prompt."""
    _check_suffix(output, ".png")
    _report(client.text_to_image(prompt, **parameters), output)


@takes_client
@takes_parameters(ImageToVideoParameters)
def video(
    client: Client,
    parameters: dict[str, Any],
    picture: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP file.", show_default=False)],
    output: Output = Path("video.mp4"),
) -> None:
    """Make one clip from a picture."""
    _check_suffix(output, ".mp4")
    _report(client.image_to_video(picture, **parameters), output)


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

"""The chain: each scene's picture, then its clip, written to one folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudvid.answers import Generated
from cloudvid.client import Client
from cloudvid.errors import StageError
from cloudvid.scenes import Scene
from cloudvid_schema.protocol import Stage


@dataclass(frozen=True)
class FileWritten:
    """A scene's picture or clip is there, whole."""

    scene: Scene
    stage: Stage
    path: Path
    result: Generated


@dataclass(frozen=True)
class SceneFailed:
    """A scene was given up; the others go on."""

    scene: Scene
    stage: Stage
    error: StageError


def render(scenes: Sequence[Scene], client: Client, output_dir: Path) -> Iterator[FileWritten | SceneFailed]:
    """Make every scene's picture and clip, and say so as it happens.

    Raises:
        ServerUnavailable: the server cannot be reached or refuses the token.
        OutputError: a file cannot be written.
    """
    for scene in scenes:
        stage = Stage.T2I
        try:
            picture = client.send(scene.t2i_request())
            yield FileWritten(scene, stage, picture.save(output_dir / scene.picture_name), picture)
            stage = Stage.I2V
            clip = client.send(scene.i2v_request(), picture.data)
            yield FileWritten(scene, stage, clip.save(output_dir / scene.video_name), clip)
        except StageError as error:
            yield SceneFailed(scene, stage, error)

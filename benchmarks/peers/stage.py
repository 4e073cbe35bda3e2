"""What the peers serve: the product's own stages, fed with the JSON form of a request."""

import base64
import os
from typing import Any

from cloudvid_schema.jobs import Job
from cloudvid_schema.protocol import ImageToVideoRequest, Stage, TextToImageRequest
from cloudvid_stages.image_to_video import ImageToVideo
from cloudvid_stages.text_to_image import TextToImage


class Served:
    """The stage that the variables `STAGE` and `MODEL` name, loaded."""

    def __init__(self) -> None:
        kind = {Stage.T2I: TextToImage, Stage.I2V: ImageToVideo}[Stage(os.environ["STAGE"])]
        self._loaded = kind.load({"model": os.environ["MODEL"]}, None)

    def make(self, asked: dict[str, Any]) -> tuple[bytes, str]:
        """The file of a request, and its media type.

        Raises:
            Exception: whatever the request failed with.
        """
        picture = asked.pop("image", None)
        if self._loaded.stage is Stage.T2I:
            job = Job(TextToImageRequest.model_validate(asked))
        else:
            job = Job(ImageToVideoRequest.model_validate(asked), base64.b64decode(picture))
        (outcome,) = self._loaded.run([job])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome.data, outcome.media_type

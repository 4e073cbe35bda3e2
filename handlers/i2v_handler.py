"""Handler of the `i2v` model archive."""

import atexit

from cloudvid_serving.jobs import LoadedStage
from stage_handler import StageHandler, end_at_once

atexit.register(end_at_once)  # this module is only imported by TorchServe's workers


class ImageToVideoHandler(StageHandler):
    """Serves image to video."""

    @staticmethod
    def import_stage() -> type[LoadedStage]:
        from cloudvid_stages.image_to_video import ImageToVideo

        return ImageToVideo

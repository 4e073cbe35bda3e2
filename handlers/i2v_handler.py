"""Handler of the `i2v` model archive."""

import atexit

from stage_handler import StageHandler, end_at_once

atexit.register(end_at_once)  # this module is only imported by TorchServe's workers


class ImageToVideoHandler(StageHandler):
    """Serves image to video."""

    stage_class = "cloudvid_stages.image_to_video:ImageToVideo"

"""Handler of the `t2i` model archive."""

import atexit

from stage_handler import StageHandler, end_at_once

atexit.register(end_at_once)  # this module is only imported by TorchServe's workers


class TextToImageHandler(StageHandler):
    """Serves text to image."""

    stage_class = "cloudvid_stages.text_to_image:TextToImage"

"""Handler of the `t2i` model archive."""

from cloudvid_stages.text_to_image import TextToImage
from stage_handler import StageHandler


class TextToImageHandler(StageHandler):
    """Serves text to image."""

    stage_class = TextToImage

"""Handler of the `i2v` model archive."""

from cloudvid_stages.image_to_video import ImageToVideo
from stage_handler import StageHandler


class ImageToVideoHandler(StageHandler):
    """Serves image to video."""

    stage_class = ImageToVideo

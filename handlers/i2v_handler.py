"""Handler of the `i2v` model archive."""

from cloudvid_schema.jobs import LoadedStage
from stage_handler import StageHandler


class ImageToVideoHandler(StageHandler):
    """Serves image to video."""

    @staticmethod
    def import_stage() -> type[LoadedStage]:
        from cloudvid_stages.image_to_video import ImageToVideo

        return ImageToVideo

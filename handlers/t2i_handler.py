"""Handler of the `t2i` model archive."""

from cloudvid_schema.jobs import LoadedStage
from stage_handler import StageHandler


class TextToImageHandler(StageHandler):
    """Serves text to image."""

    @staticmethod
    def import_stage() -> type[LoadedStage]:
        from cloudvid_stages.text_to_image import TextToImage

        return TextToImage

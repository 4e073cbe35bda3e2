"""The stages in this process, without a server: requests for them, and what they make of those."""

import io

import numpy as np
from PIL import Image

from cloudvid_schema.protocol import ImageToVideoRequest, TextToImageRequest
from cloudvid_serving.jobs import Job
from cloudvid_stages.image_to_video import ImageToVideo
from cloudvid_stages.settings import ImageToVideoSettings, TextToImageSettings
from cloudvid_stages.text_to_image import TextToImage

KINDS = {"t2i": (TextToImage, TextToImageSettings), "i2v": (ImageToVideo, ImageToVideoSettings)}


def load(model, stage, gpu_id=None, **settings):
    """The stage as a worker loads it, with this model and these settings."""
    return KINDS[stage][0].load({"model": str(model), **settings}, gpu_id)


def run(loaded, request, picture=None, on_step=lambda *_: None):
    """The output of one request; its error is raised."""
    (outcome,) = loaded.run([Job(request, picture, on_step=on_step)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def picture(size=(64, 64)):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def prompt(**values):
    return TextToImageRequest(
        **{"prompt": "a lamp", "width": 128, "height": 64, "num_inference_steps": 4, "seed": 1, **values}
    )


def clip(**values):
    return ImageToVideoRequest(**{"num_frames": 5, "num_inference_steps": 1, "seed": 1, **values})


REQUESTS = {"t2i": (prompt(), None), "i2v": (clip(num_frames=3, num_inference_steps=3), picture((128, 128)))}


def pixels(stage, loaded):
    """What a stage makes of its request: float values of 0 to 1, before any file format rounds them."""
    request, image = REQUESTS[stage]
    caught = []
    processor = loaded._pipeline.image_processor if stage == "t2i" else loaded._pipeline.video_processor
    name = "postprocess" if stage == "t2i" else "postprocess_video"
    original = getattr(processor, name)

    def postprocess(tensor=None, *arguments, video=None, **options):
        caught.append(tensor if tensor is not None else video)
        return original(
            *([tensor] if tensor is not None else []),
            *arguments,
            **options | ({"video": video} if video is not None else {}),
        )

    setattr(processor, name, postprocess)
    try:
        output = run(loaded, request, image)
    finally:
        delattr(processor, name)
    return caught[0].float(), output


def decoded(data):
    """A PNG's pixels, H×W×3, as integers that can be subtracted."""
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)

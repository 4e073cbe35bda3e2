"""What an operator allows: each request is held against it before any pipeline runs."""

from cloudvid_schema.faults import Fault
from cloudvid_schema.protocol import RequestError
from cloudvid_stages.settings import ImageToVideoSettings, TextToImageSettings


def check_limits(
    settings: TextToImageSettings | ImageToVideoSettings, *, pixels: int, steps: int, frames: int = 1, prompt: str = ""
) -> None:
    """Return where a request is within the operator's limits.

    Args:
        settings: the settings in force.
        pixels: of one frame.
        steps: denoising steps.
        frames: of a clip.
        prompt: of a picture.

    Raises:
        RequestError: 422, with every limit that it is over.
    """
    work = pixels * frames * steps / 1e6
    what = "width × height × frames × steps, in millions,"
    measured: list[tuple[str, str, float, float | None]] = [
        ("width", "width × height", pixels, settings.max_pixels),
        ("num_inference_steps", "num_inference_steps", steps, settings.max_steps),
        ("num_inference_steps", what, work, settings.max_megapixel_steps),
    ]
    if isinstance(settings, ImageToVideoSettings):
        measured.append(("num_frames", "num_frames", frames, settings.max_frames))
    else:
        measured.append(("prompt", "its length in characters", len(prompt), settings.max_prompt))
    faults = [
        Fault(place, f"{what} must be at most {limit:g} on this server, and is {value:g}", has_value=False)
        for place, what, value, limit in measured
        if limit is not None and value > limit
    ]
    if faults:
        raise RequestError.invalid(faults)

"""What an operator allows: each request is held against it before any pipeline runs."""

from cloudvid_schema.faults import Fault
from cloudvid_schema.protocol import RequestError
from cloudvid_stages.settings import StageSettings


def check_limits(settings: StageSettings, *, pixels: int, steps: int, frames: int = 1, prompt: str = "") -> None:
    """Return where a request of so many pixels (of each frame) and denoising steps is within the operator's limits.

    Raises:
        RequestError: 422, with every limit that it is over.
    """
    work = "width × height × frames × steps, in millions,"
    limits = settings.limits
    measured = (
        ("width", "width × height", pixels, "max_pixels"),
        ("num_inference_steps", "num_inference_steps", steps, "max_steps"),
        ("num_inference_steps", work, pixels * frames * steps / 1e6, "max_megapixel_steps"),
        ("num_frames", "num_frames", frames, "max_frames"),
        ("prompt", "its length in characters", len(prompt), "max_prompt"),
    )
    faults = [
        Fault(place, f"{what} must be at most {limits[name]:g} on this server, and is {value:g}", has_value=False)
        for place, what, value, name in measured
        if name in limits and value > limits[name]
    ]
    if faults:
        raise RequestError.invalid(faults)

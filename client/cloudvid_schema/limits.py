"""What an operator allows a request to ask for: checked by the worker, and by a client before anything is sent."""

from collections.abc import Mapping

from cloudvid_schema.faults import Fault


def over_limits(
    limits: Mapping[str, float], *, pixels: int, steps: int, frames: int = 1, prompt: str = ""
) -> list[Fault]:
    """Every limit that a request is over.

    Args:
        limits: by the names of the settings, e.g. `max_frames`; what is absent is not limited.
        pixels: of each frame.
        steps: of denoising.
        frames: of a clip.
        prompt: of a picture.
    """
    work = "width × height × frames × steps, in millions,"
    measured = (
        ("width", "width × height", pixels, "max_pixels"),
        ("num_inference_steps", "num_inference_steps", steps, "max_steps"),
        ("num_inference_steps", work, pixels * frames * steps / 1e6, "max_megapixel_steps"),
        ("num_frames", "num_frames", frames, "max_frames"),
        ("prompt", "its length in characters", len(prompt), "max_prompt"),
    )
    return [
        Fault(place, f"{what} must be at most {limits[name]:g} on this server, and is {value:g}", has_value=False)
        for place, what, value, name in measured
        if name in limits and value > limits[name]
    ]

"""The size of a clip, as it follows from the picture: for the server that makes it and the client that plans."""

from cloudvid_schema.faults import Fault
from cloudvid_schema.parameters import I2V_MULTIPLE, MAX_SIDE

DEFAULT_FRAMES = 25
"""Of a clip for which none are asked, where the model is not known: SVD-XT's, which makes the most."""


def clip_size(picture: tuple[int, int], width: int | None, height: int | None) -> tuple[tuple[int, int], list[Fault]]:
    """Width and height of the clip in pixels: as asked, else the picture's own, rounded down to what SVD can make.

    Where one side is asked for, the other keeps the picture's aspect.

    Returns:
        The size, and a fault for each side that comes out too small or too large.
    """
    own_width, own_height = picture
    sides = {
        "width": width or (own_width if height is None else height * own_width / own_height),
        "height": height or (own_height if width is None else width * own_height / own_width),
    }
    faults = [
        Fault(
            name,
            f"must be {I2V_MULTIPLE} to {MAX_SIDE}, and follows as {side:.4g} from the picture's "
            f"{own_width}×{own_height}; give both width and height",
            has_value=False,
        )
        for name, side in sides.items()
        if not I2V_MULTIPLE <= side < MAX_SIDE + I2V_MULTIPLE
    ]
    size = int(sides["width"]) // I2V_MULTIPLE * I2V_MULTIPLE, int(sides["height"]) // I2V_MULTIPLE * I2V_MULTIPLE
    return size, faults

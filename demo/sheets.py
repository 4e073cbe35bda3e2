"""The pictures of the documents: what README's first command made, and what the painter knows."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cloudvid_schema.protocol import DEMO_MODEL
from demo.evaluation import Painter
from demo.motion import pixels_of
from demo.pair import MODELS

PROMPTS = (
    "a red lighthouse by the sea at noon",
    "a white lighthouse on the hills at dusk",
    "a black lighthouse by a stormy sea in a storm",
    "a lighthouse in the snow at night, a full moon",
    "a red sailing boat on a calm sea at dawn",
    "a white ship on a rough sea in a thunderstorm",
    "a yellow boat on the ocean at sunset",
    "a blue sailboat on the sea at night, stars",
    "a red cottage on green hills at noon, clouds",
    "a yellow house in the mountains at sunset",
    "a blue hut in the snow by night",
    "a white house in the desert at midday",
    "a green tree on green hills in the morning light",
    "an orange tree on the meadows at dusk",
    "a pink tree in a winter landscape at dawn",
    "a red hot-air balloon over green hills at dawn",
    "a purple balloon over the desert at noon",
    "a yellow balloon above the mountains at dusk",
    "a white gull over the sea during the day",
    "a black bird above the dunes at sunrise",
    "a golden dragon over snowy mountains at sunset",
    "a green dragon high above the hills at noon",
    "a red dragon over the sea in a storm",
    "a purple dragon over the snow at night, a crescent moon",
)
_CELL = (288, 192)
_GAP, _LINE = 8, 34


def contact_sheet(target: Path, columns: int = 4) -> None:
    """Draw `PROMPTS` at 384×256 with seed 1 and default parameters, each above its prompt."""
    painter = Painter(str(MODELS / f"{DEMO_MODEL}-t2i"))
    rows = -(-len(PROMPTS) // columns)
    width, height = _CELL[0] + _GAP, _CELL[1] + _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    font, draw = ImageFont.load_default(12), ImageDraw.Draw(sheet)
    for index, prompt in enumerate(PROMPTS):
        x, y = index % columns * width + _GAP, index // columns * height + _GAP
        picture = Image.fromarray(painter.paint(prompt, seed=1, width=384, height=256))
        sheet.paste(picture.resize(_CELL, Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + _CELL[1] + 3), _wrapped(prompt, font, _CELL[0]), "black", font)
    sheet.save(target, quality=90)


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if font.getlength(longer) <= width else [lines[-1], word]
    return "\n".join(lines)


def strip(folder: Path, target: Path, height: int = 168) -> None:
    """Show each scene of an output folder in a row: its picture, and three frames of its clip."""
    rows = []
    for path in sorted(folder.glob("*_base_image.png")):
        frames = pixels_of(path.with_name(path.name.replace("_base_image.png", "_video.mp4")).read_bytes())
        shown = [pixels_of(path.read_bytes())[0], *(frames[len(frames) * third // 3 - 1] for third in (1, 2, 3))]
        row = [
            Image.fromarray(picture).resize((height * picture.shape[1] // picture.shape[0], height))
            for picture in shown
        ]
        rows.append(np.concatenate([np.asarray(picture) for picture in row], axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    Image.fromarray(np.concatenate(padded)[:-_GAP]).save(target, quality=90)

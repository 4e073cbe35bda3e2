"""What the pair can do, in figures: pictures by the judge, clips by where things are from frame to frame.

Both are made by the stages' own classes, from requests with their defaults, as a server would.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from cloudvid_schema.protocol import DEMO_MODEL, ImageToVideoRequest, TextToImageRequest
from cloudvid_serving.jobs import Job
from cloudvid_stages.image_to_video import ImageToVideo
from cloudvid_stages.text_to_image import TextToImage
from demo.captions import KIND_NAMES, caption
from demo.judge import Judge, Verdict
from demo.motion import brightness, displacement, motion, pixels_of, psnr, rank_correlation
from demo.painting import paint
from demo.pair import MODELS
from demo.scenes import FLYING, Cloud, Kind, Scene, random_scene
from demo.training.parts import SEED, STILLS, wordings
from demo.training.pictures import scene_of_still

_SEED = 2000
"""Far from the seeds of what models and judge are trained on."""


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    hits: int
    total: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.hits / self.total:.1%} ({low:.1%} to {high:.1%}, {self.hits} of {self.total})"

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval at 95 %."""
        z, n, p = 1.96, self.total, self.hits / self.total
        middle, spread = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return (middle - spread) / (1 + z**2 / n), (middle + spread) / (1 + z**2 / n)


@dataclass(frozen=True)
class Case:
    """A prompt, and what it asks for."""

    prompt: str
    truth: Verdict

    @property
    def kind(self) -> Kind:
        """Of the one subject."""
        return next(iter(self.truth.subjects))


def cases(count: int) -> list[Case]:
    """Prompts that name a sky, a ground, and one subject with its colour, none of which occurs in the training text."""
    known = {
        text
        for size, (_, on_gpu) in STILLS.items()
        for index in range(on_gpu)
        for text in wordings(size, index, scene_of_still(size, SEED, index)[0])
    }
    random = Random(_SEED)
    found: list[Case] = []
    while len(found) < count:
        scene = random_scene(random, 1, subjects=1)
        text = caption(scene, random, complete=True)
        if text not in known:
            found.append(Case(text, Verdict.of_scene(scene)))
    return found


class Painter:
    """The text-to-image model as a worker has it."""

    def __init__(self, models: str, dtype: str = "auto") -> None:
        self._stage = TextToImage.load({"model": models, "dtype": dtype}, None)

    def paint(self, prompt: str, seed: int, **parameters: Any) -> np.ndarray:
        """A picture, H×W×3 uint8."""
        (outcome,) = self._stage.run([Job(TextToImageRequest(prompt=prompt, seed=seed, **parameters))])
        if isinstance(outcome, Exception):
            raise outcome
        return pixels_of(outcome.data)[0]


class Animator:
    """The image-to-video model as a worker has it."""

    def __init__(self, models: str, dtype: str = "auto") -> None:
        self._stage = ImageToVideo.load({"model": models, "dtype": dtype}, None)

    def animate(self, picture: np.ndarray, **parameters: Any) -> np.ndarray:
        """A clip, N×H×W×3 uint8."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        request = ImageToVideoRequest(**{"seed": 7, **parameters})
        (outcome,) = self._stage.run([Job(request, buffer.getvalue())])
        if isinstance(outcome, Exception):
            raise outcome
        return pixels_of(outcome.data)


def judge_pictures(painter: Painter, judge: Judge, asked: Sequence[Case], **parameters: Any) -> dict[str, Share]:
    """How often a picture shows what its prompt asks for."""
    pictures = [painter.paint(case.prompt, seed=index, **parameters) for index, case in enumerate(asked)]
    return scores(judge.judge(pictures), asked)


def scores(verdicts: Sequence[Verdict], asked: Sequence[Case]) -> dict[str, Share]:
    """How often sky, ground, subject, and a subject of that colour were found."""
    pairs = list(zip(verdicts, (case.truth for case in asked), strict=True))

    def share(hits: Iterable[bool]) -> Share:
        return Share(sum(hits), len(pairs))

    return {
        "sky": share(v.sky == t.sky for v, t in pairs),
        "ground": share(v.ground == t.ground for v, t in pairs),
        "subject": share(t.subjects.keys() <= v.subjects.keys() for v, t in pairs),
        "colour": share(t.subjects.items() <= v.subjects.items() for v, t in pairs),
        "only that subject": share(t.subjects.keys() == v.subjects.keys() for v, t in pairs),
    }


def judge_negative(
    painter: Painter, judge: Judge, asked: Sequence[Case], with_colour: bool = False, **parameters: Any
) -> Share:
    """How often the subject is there although the negative prompt names it, with or without its colour."""
    pictures = []
    for index, case in enumerate(asked):
        name = KIND_NAMES[case.kind][0]
        negative = f"{case.truth.subjects[case.kind]} {name}" if with_colour else name
        pictures.append(painter.paint(case.prompt, seed=index, negative_prompt=negative, **parameters))
    found = [case.kind in verdict.subjects for verdict, case in zip(judge.judge(pictures), asked, strict=True)]
    return Share(sum(found), len(found))


def judge_clips(animator: Animator, count: int = 40, size: tuple[int, int] = (192, 128)) -> dict[str, float]:
    """What clips of held-out renders keep, and what moves in them.

    Args:
        animator: the model.
        count: pictures.
        size: of the clips, in pixels.

    Returns:
        `first_frame_psnr` in dB (mean) and `first_frame_psnr_min`; `bucket_rank` (mean rank correlation of motion and
        `motion_bucket_id` 20, 60, 120, 200); `house_over_clouds` (how far a house goes, over how far clouds go);
        `fps_6_over_24` (motion); `flicker` (range of the brightness of still skies, of 255, the largest).
    """
    random = Random(_SEED + 1)
    pictures = [paint(random_scene(random, size[0] / size[1]), *size) for _ in range(count)]
    buckets = np.array([20, 60, 120, 200])
    psnrs, ranks = [], []
    for picture in pictures:
        clips = [animator.animate(picture, motion_bucket_id=int(bucket)) for bucket in buckets]
        psnrs += [psnr(clip[0], picture) for clip in clips]
        ranks.append(rank_correlation(buckets, np.array([motion(clip) for clip in clips])))
    slow, fast = (sum(motion(animator.animate(p, fps=fps)) for p in pictures[:10]) for fps in (6, 24))
    return {
        "first_frame_psnr": float(np.mean(psnrs)),
        "first_frame_psnr_min": min(psnrs),
        "bucket_rank": float(np.mean(ranks)),
        "house_over_clouds": _house_over_clouds(animator, size),
        "fps_6_over_24": slow / fast,
        "flicker": _flicker(animator, size),
    }


def _scenes_where(condition: Callable[[Scene], bool], size: tuple[int, int], count: int) -> list[Scene]:
    random = Random(_SEED + 2)
    found: list[Scene] = []
    while len(found) < count:
        scene = random_scene(random, size[0] / size[1])
        if condition(scene):
            found.append(scene)
    return found


def _house_over_clouds(animator: Animator, size: tuple[int, int], count: int = 12) -> float:
    """How far houses go in a clip, as a share of how far the clouds above them go."""
    width, height = size

    def free_clouds(scene: Scene) -> list[Cloud]:
        return [cloud for cloud in scene.clouds if 0.15 < cloud.x < scene.aspect - 0.5]

    def suits(scene: Scene) -> bool:
        kinds = [thing.kind for thing in scene.subjects]
        return kinds == ["house"] and scene.weather == "cloudy" and bool(free_clouds(scene))

    houses, clouds = 0.0, 0.0
    for scene in _scenes_where(suits, size, count):
        clip = animator.animate(paint(scene, *size))
        house, cloud = scene.subjects[0], free_clouds(scene)[0]
        x = scene.aspect * {"left": 0.2, "middle": 0.5, "right": 0.8}[house.place] + house.offset[0]
        box = _box(x - 0.2, scene.horizon - 0.28, x + 0.2, scene.horizon + 0.14, size)
        houses += math.hypot(*displacement(clip[0], clip[-1], box, (width // 8, height // 16)))
        sky = _box(
            cloud.x - 0.6 * cloud.width,
            cloud.y - 0.3 * cloud.width,
            cloud.x + 0.6 * cloud.width,
            cloud.y + 0.2 * cloud.width,
            size,
        )
        clouds += math.hypot(*displacement(clip[0], clip[-1], sky, (width // 4, 2)))
    return houses / clouds


def _flicker(animator: Animator, size: tuple[int, int], count: int = 10) -> float:
    """By how much the brightness of skies changes in which nothing moves, at most."""

    def suits(scene: Scene) -> bool:
        moves = any(thing.kind in (*FLYING, "lighthouse") for thing in scene.subjects)
        return not scene.clouds and not moves and scene.orb is None

    ranges = []
    for scene in _scenes_where(suits, size, count):
        clip = animator.animate(paint(scene, *size))
        sky = brightness(clip[:, : size[1] // 5])
        ranges.append(float(sky.max() - sky.min()))
    return max(ranges)


def _box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in heights, as one in pixels, within the picture."""
    width, height = size
    x0, x1 = (min(width, max(0, round(side * height))) for side in (left, right))
    y0, y1 = (min(height, max(0, round(side * height))) for side in (top, bottom))
    return x0, y0, x1, y1


def different_seeds(painter: Painter, asked: Sequence[Case], **parameters: Any) -> float:
    """Mean difference (of 255) between two seeds' pictures of the same prompt: the closest pair's."""
    pairs = [[painter.paint(case.prompt, seed=seed, **parameters).astype(int) for seed in (1, 2)] for case in asked]
    return min(float(np.abs(one - other).mean()) for one, other in pairs)


Row = tuple[str, str, str]
"""A figure, what was aimed at, and what was measured."""


def evaluate_pictures(count: int, size: tuple[int, int] = (512, 512), dtype: str = "auto") -> Iterator[Row]:
    """Judge the committed text-to-image model.

    Args:
        count: prompts; a fifth of them is also drawn without guidance, and with the subject as negative prompt.
        size: of the pictures, in pixels.
        dtype: as in the stage's settings; a CPU with AMX is twice as fast in `bf16` as in fp32, its default.
    """
    judge, painter = Judge.load(), Painter(str(MODELS / f"{DEMO_MODEL}-t2i"), dtype)
    asked, parameters = cases(count), {"width": size[0], "height": size[1]}
    fewer = asked[: max(1, count // 5)]
    aims = {"sky": "≥ 95 %", "ground": "≥ 95 %", "subject": "≥ 90 %", "colour": "≥ 90 %", "only that subject": ""}
    for name, share in judge_pictures(painter, judge, asked, **parameters).items():
        yield f"{name}, at {size[0]}×{size[1]}", aims[name], str(share)
    for name, share in judge_pictures(painter, judge, fewer, guidance_scale=1, **parameters).items():
        yield f"{name}, with `guidance_scale` 1", "clearly fewer", str(share)
    for name, with_colour in (("subject", False), ("subject and colour", True)):
        share = judge_negative(painter, judge, fewer, with_colour, **parameters)
        yield f"subject, with `negative_prompt` naming the {name}", "< 20 %", str(share)
    closest = different_seeds(painter, fewer[:10], **parameters)
    yield "two seeds of one prompt: mean difference of the closest pair, of 255", "", f"{closest:.1f}"


def evaluate_clips(count: int, size: tuple[int, int] = (192, 128), dtype: str = "auto") -> Iterator[Row]:
    """Judge the committed image-to-video model.

    Args:
        count: pictures that are animated.
        size: of the clips, in pixels.
        dtype: as in the stage's settings.
    """
    animator = Animator(str(MODELS / f"{DEMO_MODEL}-i2v"), dtype)
    figures = judge_clips(animator, count, size)
    yield "first frame and input picture, PSNR: mean", "≥ 26 dB", f"{figures['first_frame_psnr']:.1f} dB"
    yield "the same, of the worst clip", "", f"{figures['first_frame_psnr_min']:.1f} dB"
    yield "motion and `motion_bucket_id` 20, 60, 120, 200: rank correlation", "≥ 0.95", f"{figures['bucket_rank']:.3f}"
    yield "how far a house goes, relative to the clouds", "< 0.1", f"{figures['house_over_clouds']:.3f}"
    yield "motion between frames at `fps` 6, relative to 24", "> 1", f"{figures['fps_6_over_24']:.2f}"
    yield "brightness of a still sky: largest range within a clip, of 255", "≤ 2", f"{figures['flicker']:.1f}"


def table(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table; each is printed as soon as it is measured."""
    lines = ["| figure | aim | measured |", "|---|---|---|"]
    for row in rows:
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)

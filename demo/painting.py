"""Scenes become pictures: the sky, the ground, and what stands between them.

All motion follows from the first picture: clouds drift to the right, the balloon rises, and what swings (boats, wings,
crowns, beams) shows by its pose which way it swings. A small model can learn that; it could not guess.
"""

import math
from dataclasses import dataclass

import numpy as np

from demo.canvas import RGB, Canvas, Point, mixed, tinted
from demo.scenes import FLYING, Ground, Scene
from demo.subjects import Setting, draw

_SKIES: dict[str, tuple[RGB, RGB, RGB]] = {
    "dawn": ((126, 164, 220), (246, 190, 188), (255, 228, 172)),
    "noon": ((58, 142, 230), (122, 188, 246), (198, 230, 252)),
    "dusk": ((76, 50, 130), (212, 90, 110), (255, 170, 82)),
    "night": ((12, 18, 56), (26, 38, 96), (58, 78, 138)),
}
_STORMS: dict[str, tuple[RGB, RGB, RGB]] = {
    "dawn": ((112, 106, 120), (150, 138, 146), (184, 166, 162)),
    "noon": ((82, 92, 108), (114, 124, 138), (152, 160, 170)),
    "dusk": ((66, 54, 76), (110, 86, 102), (154, 114, 112)),
    "night": ((26, 30, 44), (44, 50, 68), (68, 76, 96)),
}
_GROUND_LIGHT: dict[str, RGB] = {
    "dawn": (1, 0.92, 0.88),
    "noon": (1, 1, 1),
    "dusk": (0.76, 0.6, 0.7),
    "night": (0.36, 0.42, 0.66),
}
_SUBJECT_LIGHT: dict[str, RGB] = {
    "dawn": (1, 0.97, 0.95),
    "noon": (1, 1, 1),
    "dusk": (0.92, 0.84, 0.86),
    "night": (0.84, 0.86, 0.96),
}
_ORBS: dict[str, RGB] = {
    "dawn": (255, 216, 128),
    "noon": (255, 238, 120),
    "dusk": (255, 122, 60),
    "night": (246, 242, 214),
}
_CLOUDS: dict[str, RGB] = {
    "dawn": (255, 236, 226),
    "noon": (255, 255, 255),
    "dusk": (232, 158, 158),
    "night": (92, 106, 152),
}
_STORM_CLOUDS: dict[str, RGB] = {
    "dawn": (96, 90, 102),
    "noon": (70, 78, 92),
    "dusk": (54, 44, 60),
    "night": (16, 19, 30),
}
_LAYERS: dict[Ground, tuple[RGB, RGB, RGB]] = {
    "sea": ((58, 138, 190), (36, 104, 164), (22, 72, 128)),
    "hills": ((130, 188, 100), (96, 164, 76), (66, 134, 58)),
    "mountains": ((116, 126, 158), (92, 112, 116), (66, 88, 90)),
    "desert": ((242, 206, 138), (232, 184, 106), (212, 156, 80)),
    "snow": ((226, 234, 246), (242, 246, 253), (212, 224, 244)),
}
"""Far, middle and near."""
_RELIEF: dict[Ground, float] = {"sea": 0, "hills": 0.055, "mountains": 0.03, "desert": 0.04, "snow": 0.03}


@dataclass(frozen=True)
class _View:
    """A canvas, the scene on it, and the light that falls on its ground."""

    canvas: Canvas
    scene: Scene
    time: float
    light: RGB
    haze: RGB
    """The sky's colour at the horizon, which far things take on."""


def paint(scene: Scene, width: int, height: int, time: float = 0) -> np.ndarray:
    """The picture of a scene.

    Args:
        scene: its aspect is that of width and height, or what stands at the edges is cut.
        width: pixels.
        height: pixels.
        time: of its motion; see `scenes.time_step`.

    Returns:
        H×W×3 uint8, RGB.
    """
    storm = scene.weather == "storm"
    sky = (_STORMS if storm else _SKIES)[scene.hour]
    canvas = Canvas(width, height)
    canvas.gradient(sky, scene.horizon)
    dimmed = 0.82 if storm else 1
    light = tinted(_GROUND_LIGHT[scene.hour], (dimmed,) * 3)
    view = _View(canvas, scene, time, light, haze=sky[-1])
    _draw_heaven(view, sky)
    _draw_far_ground(view)
    setting = Setting(
        light=tinted(_SUBJECT_LIGHT[scene.hour], (0.9 if storm else 1,) * 3),
        dark=storm or scene.hour in ("dusk", "night"),
        at_sea=scene.ground == "sea",
        rough=scene.rough,
        # Portraits only have room for smaller things.
        scale=min(1, 0.5 + 0.35 * scene.aspect),
        ground_y=scene.horizon + 0.12,
        time=time,
    )
    for subject in scene.subjects:
        if subject.kind not in FLYING:
            draw(canvas, subject, setting)
    _draw_near_ground(view)
    for subject in scene.subjects:
        if subject.kind in FLYING:
            draw(canvas, subject, setting)
    return canvas.pixels()


def _draw_heaven(view: _View, sky: tuple[RGB, RGB, RGB]) -> None:
    canvas, scene = view.canvas, view.scene
    for x, y, radius in scene.stars:
        points = [(0, -1), (0.24, -0.24), (1, 0), (0.24, 0.24), (0, 1), (-0.24, 0.24), (-1, 0), (-0.24, -0.24)]
        canvas.polygon([(x + dx * radius, y + dy * radius) for dx, dy in points], (255, 252, 226))
    if scene.orb:
        colour, radius = _ORBS[scene.hour], 0.085 if scene.orb.kind == "sun" else 0.075
        x, y = scene.orb.x * scene.aspect, scene.orb.y - 0.005 * view.time
        for glow, opacity in ((1.75, 0.16), (1.35, 0.22), (1, 1)):
            canvas.ellipse(x, y, radius * glow, radius * glow, colour, opacity)
        if scene.orb.kind == "crescent":
            behind = mixed(mixed(sky[0], sky[1], min(1, 2 * y / scene.horizon)), colour, 0.2)
            canvas.ellipse(x + radius * 0.45, y - radius * 0.2, radius * 0.85, radius * 0.85, behind)
    colour = (_STORM_CLOUDS if scene.weather == "storm" else _CLOUDS)[scene.hour]
    span = scene.aspect + 0.8
    for cloud in scene.clouds:
        x, y, width = (cloud.x + 0.016 * view.time + 0.4) % span - 0.4, cloud.y, cloud.width
        for share, bump in zip((-0.27, 0.02, 0.3), cloud.bumps, strict=True):
            canvas.ellipse(
                x + share * width,
                y - (0.09 if share == 0.02 else 0) * width,
                0.25 * width * bump,
                0.21 * width * bump,
                colour,
            )
        canvas.blob(_flat_oval(x, y + 0.07 * width, 0.56 * width, 0.11 * width), colour)


def _flat_oval(x: float, y: float, rx: float, ry: float) -> list[Point]:
    return [
        (x - rx, y),
        (x - 0.8 * rx, y - ry),
        (x + 0.8 * rx, y - ry),
        (x + rx, y),
        (x + 0.8 * rx, y + ry),
        (x - 0.8 * rx, y + ry),
    ]


def _layer(view: _View, y: float, waves: list[tuple[float, float, float]], colour: RGB) -> list[Point]:
    """Fill everything below a height that waves; each wave is an amplitude, a wave number and a phase. Its edge."""
    xs = np.linspace(-0.02, view.scene.aspect + 0.02, 64)
    ys = sum((amplitude * np.sin(number * xs + phase) for amplitude, number, phase in waves), np.full_like(xs, y))
    edge = list(zip(xs.tolist(), ys.tolist(), strict=True))
    view.canvas.polygon([*edge, (view.scene.aspect + 0.02, 1.02), (-0.02, 1.02)], colour)
    return edge


def _colours(view: _View) -> tuple[RGB, RGB, RGB]:
    """Of the ground's three layers, in the scene's light."""
    far, middle, near = (tinted(colour, view.light) for colour in _LAYERS[view.scene.ground])
    if view.scene.ground == "sea" and view.scene.weather == "storm":
        grey = tinted((86, 100, 112), view.light)
        far, middle, near = mixed(far, grey, 0.6), mixed(middle, grey, 0.45), mixed(near, grey, 0.3)
    return mixed(far, view.haze, 0.25), middle, near


def _draw_far_ground(view: _View) -> None:
    scene, (far, middle, _) = view.scene, _colours(view)
    phases, stretches, relief = scene.phases, scene.stretches, _RELIEF[scene.ground]
    if scene.ground == "sea":
        _layer(view, scene.horizon, [], far)
        return
    if scene.ground == "mountains":
        _layer(view, scene.horizon + 0.04, [], far)
        _draw_peaks(view, far)
    else:
        _layer(
            view,
            scene.horizon,
            [(relief, 4.2 * stretches[0], phases[0]), (0.3 * relief, 9 * stretches[1], phases[1])],
            far,
        )
    _layer(view, scene.horizon + 0.1, [(relief, 3.4 * stretches[2], phases[2])], middle)


def _draw_peaks(view: _View, colour: RGB) -> None:
    """A range of peaks, each with snow on it."""
    scene, foot, every = view.scene, view.scene.horizon + 0.06, 0.4
    snow = tinted((250, 251, 255), tuple(0.2 + 0.8 * channel for channel in view.light))  # type: ignore[arg-type]
    for index in range(round(scene.aspect / every) + 2):
        phase = scene.phases[index % 8]
        x, height = every * (index - 0.25 + 0.25 * math.sin(phase)), 0.36 + 0.09 * math.sin(2 * phase)
        half = 0.34 + 0.05 * math.cos(phase)
        canvas, top = view.canvas, foot - height
        shade = mixed(colour, (40, 46, 70), 0.12 * (index % 2))
        canvas.polygon([(x - half, foot + 0.06), (x, top), (x + half, foot + 0.06)], shade)
        slope, k = half / (height + 0.06), 0.34 * height
        cap = [
            (0, 0),
            (k * slope, k),
            (0.45 * k * slope, 0.72 * k),
            (0.1 * k * slope, 1.1 * k),
            (-0.4 * k * slope, 0.75 * k),
            (-k * slope, k),
        ]
        canvas.polygon([(x + dx, top + dy) for dx, dy in cap], snow)


def _draw_near_ground(view: _View) -> None:
    scene, (far, _, near) = view.scene, _colours(view)
    phases, stretches = scene.phases, scene.stretches
    if scene.ground != "sea":
        _layer(view, scene.horizon + 0.24, [(_RELIEF[scene.ground], 2.8 * stretches[3], phases[3])], near)
        return
    height = 0.024 if scene.rough else 0.009
    foam = mixed(tinted((240, 246, 252), view.light), view.haze, 0.25)
    for index in range(4):
        # Neighbouring waves roll against each other.
        phase = phases[index] + 0.38 * view.time * (1 if index % 2 else -1)
        wave = (height * (1 + 0.3 * index), (9 - 1.2 * index) * stretches[index], phase)
        y = scene.horizon + 0.115 + 0.085 * index
        if scene.rough:
            _layer(view, y - 0.012, [wave], foam)
        _layer(view, y, [wave], mixed(far, near, (index + 1) / 4))

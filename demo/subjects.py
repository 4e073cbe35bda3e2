"""The things that stand, sail and fly in a scene: how each is drawn, and how it moves."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from demo.canvas import RGB, Canvas, Point, mixed, tinted
from demo.scenes import PLACES, Colour, Kind, Subject

COLOURS: dict[Colour, RGB] = {
    "red": (216, 44, 42),
    "orange": (244, 132, 30),
    "yellow": (248, 210, 48),
    "green": (44, 156, 72),
    "blue": (40, 92, 208),
    "purple": (134, 66, 184),
    "pink": (246, 132, 178),
    "white": (248, 246, 240),
    "black": (28, 28, 34),
}
_LAMP: RGB = (255, 228, 124)
_WHITE: RGB = (255, 255, 255)


@dataclass(frozen=True)
class Setting:
    """What a scene does to the things in it."""

    light: RGB
    dark: bool
    """Whether lamps are lit."""
    at_sea: bool
    rough: bool
    scale: float
    ground_y: float
    """Where things stand, in heights."""
    time: float


@dataclass(frozen=True)
class _Brush:
    """Draws around a point, with everything scaled and tilted."""

    canvas: Canvas
    setting: Setting
    x: float
    y: float
    size: float
    tilt: float = 0

    def place(self, points: list[Point]) -> list[Point]:
        """Points of the shape's own, as points of the canvas."""
        sine, cosine = math.sin(self.tilt) * self.size, math.cos(self.tilt) * self.size
        return [(self.x + px * cosine - py * sine, self.y + px * sine + py * cosine) for px, py in points]

    def polygon(self, points: list[Point], colour: RGB, opacity: float = 1) -> None:
        self.canvas.polygon(self.place(points), tinted(colour, self.setting.light), opacity)

    def blob(self, points: list[Point], colour: RGB, opacity: float = 1) -> None:
        self.canvas.blob(self.place(points), tinted(colour, self.setting.light), opacity)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: RGB, opacity: float = 1) -> None:
        ((cx, cy),) = self.place([(x, y)])
        self.canvas.ellipse(cx, cy, rx * self.size, ry * self.size, tinted(colour, self.setting.light), opacity)

    def box(self, left: float, top: float, right: float, bottom: float, colour: RGB) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def lamp(self, x: float, y: float, radius: float) -> None:
        """The glow of a light; a lamp is as bright by night as by day."""
        ((cx, cy),) = self.place([(x, y)])
        for share, opacity in ((1, 0.22), (0.6, 0.3)):
            self.canvas.ellipse(cx, cy, radius * share * self.size, radius * share * self.size, _LAMP, opacity)


def draw(canvas: Canvas, subject: Subject, setting: Setting) -> None:
    """Draw a subject where its place, its nature and the time have it."""
    x = canvas.aspect * (0.2, 0.5, 0.8)[PLACES.index(subject.place)] + subject.offset[0]
    size = subject.size * setting.scale
    _DRAWERS[subject.kind](_Brush(canvas, setting, x, setting.ground_y, size), subject, COLOURS[subject.colour])


def _lighthouse(brush: _Brush, subject: Subject, colour: RGB) -> None:
    setting, height, base, top = brush.setting, 0.48, 0.08, 0.052
    if setting.at_sea:
        brush = _Brush(brush.canvas, setting, brush.x, brush.y - 0.03, brush.size)
    if setting.dark:
        # The lamp turns: a beam that comes nearer is wider, and so its pose shows which way it turns.
        angle = subject.phase + 0.22 * setting.time
        rise, spread = 0.16 * math.sin(angle), 0.1 + 0.045 * math.cos(angle)
        for side in (-1, 1):
            far = [
                (side * 1.6, -height + 1.6 * (side * rise - spread)),
                (side * 1.6, -height + 1.6 * (side * rise + spread)),
            ]
            brush.canvas.polygon(brush.place([(0, -height + 0.012), *far]), _LAMP, 0.34)
    if setting.at_sea:
        brush.polygon(
            [(-0.2, 0.1), (-0.15, 0.0), (-0.06, -0.035), (0.07, -0.03), (0.16, 0.01), (0.22, 0.1)], (112, 104, 104)
        )
    stripe = (158, 166, 184) if subject.colour == "white" else (248, 246, 240)
    for index in range(5):
        upper, lower = (index / 5, (index + 1) / 5)
        widths = [top + (base - top) * share for share in (upper, lower)]
        ys = [-height + 0.06 + (height - 0.06) * share for share in (upper, lower)]
        sides = [(-widths[0], ys[0]), (widths[0], ys[0]), (widths[1], ys[1] + 0.002), (-widths[1], ys[1] + 0.002)]
        brush.polygon(sides, stripe if index % 2 else colour)
    brush.box(-0.07, -height + 0.045, 0.07, -height + 0.062, (70, 70, 82))
    brush.box(-0.036, -height - 0.002, 0.036, -height + 0.046, _LAMP if setting.dark else (206, 228, 238))
    brush.polygon([(-0.056, -height), (0.056, -height), (0, -height - 0.06)], colour)
    if setting.dark:
        brush.lamp(0, -height + 0.022, 0.085)


def _boat(brush: _Brush, subject: Subject, colour: RGB) -> None:
    setting, angle = brush.setting, subject.phase + 0.42 * brush.setting.time
    # It sails to the right. The hull's tilt runs a quarter of a turn ahead of its height and shows where that goes.
    x, y = brush.x + 0.009 * setting.time, brush.y - 0.045 + (0.02 if setting.rough else 0.009) * math.sin(angle)
    brush = _Brush(brush.canvas, setting, x, y, brush.size, tilt=(0.15 if setting.rough else 0.07) * math.cos(angle))
    brush.box(-0.014, -0.37, 0.01, 0, (96, 66, 44))
    brush.blob([(0.02, -0.36), (0.1, -0.24), (0.19, -0.05), (0.1, -0.045), (0.02, -0.05), (0.028, -0.2)], colour)
    brush.blob(
        [(-0.024, -0.32), (-0.03, -0.18), (-0.024, -0.05), (-0.09, -0.048), (-0.15, -0.05), (-0.08, -0.2)],
        mixed(colour, _WHITE, 0.3),
    )
    brush.blob(
        [(-0.19, -0.025), (0, -0.015), (0.22, -0.03), (0.17, 0.05), (0.1, 0.08), (-0.11, 0.08), (-0.16, 0.05)],
        (126, 78, 46),
    )


def _house(brush: _Brush, subject: Subject, colour: RGB) -> None:
    brush = _Brush(
        brush.canvas, brush.setting, brush.x, brush.y + (-0.03 if brush.setting.at_sea else 0.03), brush.size
    )
    if brush.setting.at_sea:
        brush.blob([(-0.34, 0.1), (-0.24, 0.0), (0, -0.02), (0.24, 0.0), (0.34, 0.1), (0, 0.16)], (110, 140, 88))
    brush.box(0.08, -0.4, 0.13, -0.26, (120, 92, 84))
    brush.box(-0.17, -0.21, 0.17, 0, colour)
    brush.polygon(
        [(-0.22, -0.205), (0.22, -0.205), (0, -0.385)],
        (86, 74, 88) if subject.colour in ("red", "orange") else (138, 66, 52),
    )
    brush.box(-0.115, -0.165, -0.025, -0.075, _LAMP if brush.setting.dark else (196, 224, 242))
    if brush.setting.dark:
        brush.lamp(-0.07, -0.12, 0.085)
    brush.box(0.04, -0.13, 0.11, 0, (92, 62, 46))


def _tree(brush: _Brush, subject: Subject, colour: RGB) -> None:
    brush = _Brush(brush.canvas, brush.setting, brush.x, brush.y + 0.05, brush.size)
    brush.polygon([(-0.026, 0), (0.026, 0), (0.016, -0.2), (-0.016, -0.2)], (108, 76, 50))
    # Its crown goes round in the wind, each part a third of a turn behind the other.
    for index, (x, y, radius) in enumerate([(-0.09, -0.22, 0.095), (0.09, -0.22, 0.095), (0, -0.31, 0.125)]):
        angle = subject.phase + 0.35 * brush.setting.time + 2 * math.pi / 3 * index
        brush.ellipse(x + 0.008 * math.cos(angle), y + 0.005 * math.sin(angle), radius, radius, colour)
    brush.ellipse(-0.035, -0.345, 0.045, 0.04, mixed(colour, _WHITE, 0.25))


def _balloon(brush: _Brush, subject: Subject, colour: RGB) -> None:
    time, r = brush.setting.time, 0.155
    y = 0.27 + subject.offset[1] - 0.014 * time
    brush = _Brush(brush.canvas, brush.setting, brush.x + 0.004 * time, y, brush.size)
    light = mixed(colour, _WHITE, 0.45) if subject.colour != "white" else (190, 198, 214)
    skin = [
        (0, -r),
        (0.72 * r, -0.72 * r),
        (r, 0),
        (0.78 * r, 0.68 * r),
        (0.24 * r, 1.5 * r),
        (-0.24 * r, 1.5 * r),
        (-0.78 * r, 0.68 * r),
        (-r, 0),
        (-0.72 * r, -0.72 * r),
    ]
    for share, shade in ((1, colour), (0.58, light), (0.2, colour)):
        brush.blob([(px * share, py) for px, py in skin], shade)
    for side in (-1, 1):
        brush.polygon(
            [(side * 0.034, 1.5 * r), (side * 0.024, 1.5 * r), (side * 0.024, 1.85 * r), (side * 0.034, 1.85 * r)],
            (84, 62, 48),
        )
    brush.box(-0.042, 1.8 * r, 0.042, 2.2 * r, (134, 90, 50))


def _bird(brush: _Brush, subject: Subject, colour: RGB) -> None:
    time = brush.setting.time
    beat = subject.phase + 0.7 * time
    # The tips of its wings follow the elbows a quarter of a beat later, which shows whether they rise or fall.
    elbow, tip = 0.065 * math.sin(beat), 0.09 * math.sin(beat - math.pi / 2)
    brush = _Brush(brush.canvas, brush.setting, brush.x + 0.018 * time, 0.27 + subject.offset[1], brush.size)
    wing = mixed(colour, (16, 16, 26), 0.2) if subject.colour != "black" else (58, 58, 70)
    brush.blob([(-0.08, 0), (-0.17, -0.026), (-0.18, 0.024), (-0.08, 0.02)], wing)
    brush.ellipse(0, 0.008, 0.105, 0.042, colour)
    brush.ellipse(0.095, -0.018, 0.042, 0.037, colour)
    brush.polygon([(0.128, -0.03), (0.175, -0.01), (0.128, 0.0)], (250, 178, 40))
    for side in (-1, 1):
        brush.blob(
            [
                (-0.045, 0),
                (0.05, -0.01),
                (0.03 + side * 0.11, -0.035 - elbow),
                (side * 0.24, -0.03 - elbow - tip),
                (-0.03 + side * 0.1, 0.02 - 0.7 * elbow),
            ],
            wing,
        )


def _dragon(brush: _Brush, subject: Subject, colour: RGB) -> None:
    time = brush.setting.time
    beat = subject.phase + 0.7 * time
    elbow, tip = 0.1 + 0.08 * math.sin(beat), 0.09 * math.sin(beat - math.pi / 2)
    y = 0.34 + subject.offset[1] + 0.012 * math.sin(beat)
    brush = _Brush(brush.canvas, brush.setting, brush.x + 0.014 * time, y, brush.size)
    wing = mixed(colour, (20, 16, 30), 0.3) if subject.colour != "black" else (64, 60, 74)

    def draw_wing(shift: float, shade: RGB) -> None:
        # Two fingers span the skin, whose rim hangs in arcs between them.
        hand, point = (shift - 0.05, -0.06 - elbow), (shift - 0.25, -0.1 - elbow - tip)
        skin = [
            (shift + 0.04, 0.0),
            (shift + 0.02, -0.05 - 0.6 * elbow),
            hand,
            point,
            (shift - 0.18, -0.03 - 0.6 * elbow - 0.5 * tip),
            (shift - 0.2, -0.4 * elbow - 0.3 * tip),
            (shift - 0.12, 0.005 - 0.15 * elbow),
            (shift - 0.1, 0.03),
        ]
        brush.polygon(skin, shade)

    draw_wing(0.1, mixed(wing, (20, 16, 30), 0.2))
    brush.blob(
        [(-0.1, 0.0), (-0.2, 0.035), (-0.31, 0.01), (-0.37, -0.05), (-0.33, 0.04), (-0.2, 0.085), (-0.08, 0.055)],
        colour,
    )
    brush.polygon([(-0.345, -0.03), (-0.42, -0.075), (-0.38, -0.005)], colour)
    brush.blob([(-0.13, 0.02), (-0.04, -0.03), (0.07, -0.025), (0.11, 0.02), (0.05, 0.06), (-0.07, 0.065)], colour)
    brush.blob(
        [(0.05, 0.03), (0.08, -0.02), (0.15, -0.08), (0.2, -0.1), (0.21, -0.065), (0.16, -0.03), (0.11, 0.04)], colour
    )
    brush.blob([(0.17, -0.115), (0.23, -0.12), (0.31, -0.085), (0.3, -0.06), (0.21, -0.055)], colour)
    brush.polygon([(0.19, -0.11), (0.13, -0.17), (0.215, -0.125)], wing)
    draw_wing(0.02, wing)


_DRAWERS: dict[Kind, Callable[[_Brush, Subject, RGB], None]] = {
    "lighthouse": _lighthouse,
    "boat": _boat,
    "house": _house,
    "tree": _tree,
    "balloon": _balloon,
    "bird": _bird,
    "dragon": _dragon,
}

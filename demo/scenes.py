"""What a picture of the demo's world can hold, and random scenes of it.

Lengths are in heights of the picture: x runs from 0 to the aspect ratio, y from 0 at the top to 1 at the bottom.
"""

import math
from dataclasses import dataclass, field
from random import Random
from typing import Literal

Hour = Literal["dawn", "noon", "dusk", "night"]
Weather = Literal["clear", "cloudy", "storm"]
Ground = Literal["sea", "hills", "mountains", "desert", "snow"]
Kind = Literal["lighthouse", "boat", "house", "tree", "balloon", "bird", "dragon"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black"]
Place = Literal["left", "middle", "right"]

HOURS: tuple[Hour, ...] = ("dawn", "noon", "dusk", "night")
SKIES = (*HOURS, "storm")
GROUNDS: tuple[Ground, ...] = ("sea", "hills", "mountains", "desert", "snow")
KINDS: tuple[Kind, ...] = ("lighthouse", "boat", "house", "tree", "balloon", "bird", "dragon")
FLYING: tuple[Kind, ...] = ("balloon", "bird", "dragon")
COLOURS: tuple[Colour, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
PLACES: tuple[Place, ...] = ("left", "middle", "right")
ASPECTS = (1.5, 1.0, 2 / 3)
"""Width over height of the pictures that the pair is trained on."""

BUCKETS_PER_UNIT = 254 / 7
"""`motion_bucket_id` times seconds a frame, of one unit of a scene's time."""


def time_step(motion_bucket_id: float, fps: float) -> float:
    """How much of a scene's time passes between two frames of a clip: half a unit at the endpoint's defaults."""
    return motion_bucket_id / BUCKETS_PER_UNIT / fps


@dataclass(frozen=True)
class Subject:
    """A thing in a scene."""

    kind: Kind
    colour: Colour
    place: Place
    offset: tuple[float, float]
    """Of its place, in heights."""
    size: float
    phase: float
    """Of its motion, in radians."""


@dataclass(frozen=True)
class Orb:
    """The sun or the moon."""

    kind: Literal["sun", "moon", "crescent"]
    x: float
    """As a share of the width."""
    y: float


@dataclass(frozen=True)
class Cloud:
    """A cloud at time 0."""

    x: float
    y: float
    width: float
    bumps: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Everything that determines a picture, but for its size and the time of its motion."""

    aspect: float
    hour: Hour
    weather: Weather
    ground: Ground
    horizon: float
    rough: bool
    """Of the sea: whether it has high waves."""
    subjects: tuple[Subject, ...] = ()
    orb: Orb | None = None
    clouds: tuple[Cloud, ...] = ()
    stars: tuple[tuple[float, float, float], ...] = ()
    """x, y and radius of each."""
    phases: tuple[float, ...] = field(default=(0.0,) * 8)
    """Of the ground's waves, in radians."""
    stretches: tuple[float, ...] = field(default=(1.0,) * 4)
    """Of their lengths."""

    @property
    def sky(self) -> str:
        """One of `SKIES`: a storm hides the hour."""
        return "storm" if self.weather == "storm" else self.hour


def random_scene(random: Random, aspect: float, subjects: int | None = None) -> Scene:
    """A scene in which everything that goes together is about as likely.

    Args:
        random: where chance comes from.
        aspect: width over height.
        subjects: how many, 0 to 2. Default: mostly one, sometimes two, seldom none.
    """
    hour, ground = random.choice(HOURS), random.choices(GROUNDS, (28, 18, 18, 18, 18))[0]
    weather: Weather = random.choices(("clear", "cloudy", "storm"), (46, 30, 24))[0]
    horizon = random.uniform(0.57, 0.67)
    count = random.choices((0, 1, 2), (7, 68, 25))[0] if subjects is None else subjects
    things = _random_subjects(random, ground, count)
    taken = {thing.place for thing in things}
    return Scene(
        aspect=aspect,
        hour=hour,
        weather=weather,
        ground=ground,
        horizon=horizon,
        rough=ground == "sea" and (weather == "storm" or random.random() < 0.15),
        subjects=things,
        orb=_random_orb(random, hour, weather, taken),
        clouds=_random_clouds(random, weather, aspect),
        stars=_random_stars(random, aspect, horizon) if hour == "night" and weather != "storm" else (),
        phases=tuple(random.uniform(0, 2 * math.pi) for _ in range(8)),
        stretches=tuple(random.uniform(0.8, 1.25) for _ in range(4)),
    )


def _random_subjects(random: Random, ground: Ground, count: int) -> tuple[Subject, ...]:
    """Things that stand apart: at most one of them flies, boats are at sea, and nothing else grows there."""
    pool = [kind for kind in KINDS if kind != ("tree" if ground == "sea" else "boat")]
    kinds: list[Kind] = []
    while len(kinds) < count:
        kind = random.choice(pool)
        if kind not in kinds and not (kind in FLYING and any(other in FLYING for other in kinds)):
            kinds.append(kind)
    sides: tuple[Place, ...] = ("left", "right")
    places = [random.choice(PLACES)] if count == 1 else random.sample(sides, count)
    return tuple(
        Subject(
            kind,
            random.choice(COLOURS),
            place,
            offset=(random.uniform(-0.04, 0.04), random.uniform(-0.03, 0.03)),
            size=random.uniform(0.92, 1.1),
            phase=random.uniform(0, 2 * math.pi),
        )
        for kind, place in zip(kinds, places, strict=True)
    )


def _random_orb(random: Random, hour: Hour, weather: Weather, taken: set[Place]) -> Orb | None:
    """A sun by day and a moon by night, where nothing stands before it; none in a storm."""
    free = [place for place in PLACES if place not in taken]
    if weather == "storm" or not free or random.random() > {"clear": 0.85, "cloudy": 0.5}[weather]:
        return None
    low = hour in ("dawn", "dusk")
    return Orb(
        kind=random.choice(("moon", "crescent")) if hour == "night" else "sun",
        x=(0.2, 0.5, 0.8)[PLACES.index(random.choice(free))] + random.uniform(-0.04, 0.04),
        y=random.uniform(0.36, 0.46) if low else random.uniform(0.13, 0.22),
    )


def _random_clouds(random: Random, weather: Weather, aspect: float) -> tuple[Cloud, ...]:
    count = {"clear": random.choice((0, 0, 1)), "cloudy": random.randint(3, 4), "storm": random.randint(4, 6)}[weather]
    if weather != "clear":
        count = max(2, round(count * aspect / 1.3))
    return tuple(
        Cloud(
            # Each in a part of the sky of its own, so that none hides the others.
            x=(index + random.uniform(0.15, 0.85)) / count * (aspect + 0.2) - 0.1,
            y=random.uniform(0.07, 0.34),
            width=random.uniform(0.2, 0.34),
            bumps=(random.uniform(0.65, 1), random.uniform(0.75, 1), random.uniform(0.65, 1)),
        )
        for index in range(count)
    )


def _random_stars(random: Random, aspect: float, horizon: float) -> tuple[tuple[float, float, float], ...]:
    return tuple(
        (random.uniform(0.02, aspect - 0.02), random.uniform(0.02, horizon - 0.12), random.uniform(0.008, 0.016))
        for _ in range(round(14 * aspect))
    )

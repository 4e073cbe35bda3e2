"""Descriptions of scenes in varied words, and the vocabulary that they are made of.

What a description leaves out stays open: the pair learns to choose it. Words about style say nothing of a scene; they
are there so that a prompt may hold them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

from cloudvid_schema.vocabulary import words
from demo.scenes import FLYING, Colour, Ground, Hour, Kind, Place, Scene, Subject, random_scene

_HOURS: dict[Hour, tuple[str, ...]] = {
    "dawn": ("at dawn", "at sunrise", "at daybreak", "in the early morning", "in the morning light"),
    "noon": ("at noon", "at midday", "in daylight", "during the day", "in bright sunshine", "on a sunny day"),
    "dusk": ("at dusk", "at sunset", "at twilight", "in the evening", "in the evening light"),
    "night": ("at night", "at midnight", "in the night", "in the dark", "by night"),
}
_HOUR_NAMES: dict[Hour, tuple[str, ...]] = {
    "dawn": ("dawn", "sunrise", "early morning", "morning"),
    "noon": ("noon", "midday", "daylight", "sunny day"),
    "dusk": ("dusk", "sunset", "evening", "twilight"),
    "night": ("night", "midnight", "night sky"),
}
_STORMS = (
    "in a storm",
    "during a storm",
    "in a thunderstorm",
    "in stormy weather",
    "under storm clouds",
    "under a stormy sky",
)
_STORM_NAMES = ("storm", "stormy sky", "storm clouds", "thunderstorm", "dark storm clouds", "gathering storm")
_GROUNDS: dict[Ground, tuple[str, ...]] = {
    "sea": ("the sea", "the ocean", "the water", "the waves", "a bay"),
    "hills": (
        "green hills",
        "rolling hills",
        "the hills",
        "grassy hills",
        "green meadows",
        "the meadows",
        "the fields",
    ),
    "mountains": (
        "the mountains",
        "high mountains",
        "snowy mountains",
        "snowy peaks",
        "a mountain range",
        "rocky mountains",
    ),
    "desert": ("the desert", "a desert", "sand dunes", "the dunes", "the sand", "a sandy desert"),
    "snow": ("the snow", "a snowy field", "a snowy landscape", "a winter landscape", "fresh snow", "the ice"),
}
_CALM_SEAS = ("a calm sea", "a quiet sea", "a calm ocean", "calm water", "a blue sea")
_ROUGH_SEAS = ("a stormy sea", "a rough sea", "a wild sea", "a stormy ocean", "a raging sea", "high waves")
KIND_NAMES: dict[Kind, tuple[str, ...]] = {
    "lighthouse": ("lighthouse",),
    "boat": ("sailing boat", "sailboat", "boat", "ship", "sailing ship"),
    "house": ("house", "cottage", "cabin", "hut"),
    "tree": ("tree",),
    "balloon": ("hot air balloon", "hot-air balloon", "balloon"),
    "bird": ("bird", "gull", "seagull", "eagle"),
    "dragon": ("dragon",),
}
_COLOURS: dict[Colour, tuple[str, ...]] = {
    "red": ("red", "red", "red", "crimson", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "golden", "golden", "gold"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue", "blue", "azure"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
    "black": ("black",),
}
_COLOURED_PARTS: dict[Kind, tuple[str, ...]] = {
    "lighthouse": ("stripes",),
    "boat": ("sails",),
    "house": ("walls",),
    "tree": ("leaves",),
    "balloon": ("stripes",),
    "bird": ("feathers", "wings"),
    "dragon": ("scales", "wings"),
}
_VERBS: dict[Kind, tuple[str, ...]] = {
    "lighthouse": ("stands", "shines", "rises"),
    "boat": ("sails", "floats", "drifts"),
    "house": ("stands", "sits"),
    "tree": ("stands", "grows"),
    "balloon": ("floats", "drifts", "rises"),
    "bird": ("flies", "glides", "soars"),
    "dragon": ("flies", "glides", "soars"),
}
_PLACES: dict[Place, tuple[str, ...]] = {
    "left": ("on the left", "to the left", "at the left"),
    "middle": ("in the middle", "in the centre", "in the center"),
    "right": ("on the right", "to the right", "at the right"),
}
_OVER = ("over", "above", "high above", "high over")
_AT: dict[Ground, tuple[str, ...]] = {
    "sea": ("by", "near", "above", "at", "in"),
    "hills": ("on", "in", "among", "over"),
    "mountains": ("in front of", "in", "near", "below", "by"),
    "desert": ("in", "on", "among"),
    "snow": ("in", "on"),
}
_ADJECTIVES = (
    "majestic",
    "old",
    "small",
    "little",
    "big",
    "large",
    "lonely",
    "beautiful",
    "lovely",
    "distant",
    "tall",
    "ancient",
    "tiny",
    "huge",
    "magical",
    "wooden",
    "bright",
    "simple",
    "quiet",
    "shimmering",
)
_OPENINGS = (
    "a picture of",
    "an illustration of",
    "a painting of",
    "a drawing of",
    "a view of",
    "a scene with",
    "an image of",
    "epic high fantasy landscape,",
    "fantasy landscape,",
    "flat illustration,",
    "storybook illustration,",
    "landscape,",
    "wide shot of",
    "concept art of",
    "please draw",
    "show me",
)
_ENDINGS = (
    "highly detailed",
    "cinematic",
    "digital art",
    "watercolour",
    "watercolor",
    "photograph",
    "storybook style",
    "flat style",
    "minimal",
    "vector art",
    "soft light",
    "dramatic light",
    "masterpiece",
    "high quality",
    "wide angle",
    "dramatic",
    "peaceful",
    "atmospheric",
    "colourful",
    "colorful",
    "detailed",
    "long exposure",
    "film still",
)
_NAMES_SHARE = 0.08
_MISTAKES = {"subjects": 0.3, "sky": 0.1, "ground": 0.1}
"""Shares of sentences that are wrong about something."""
_UNWANTED = (
    "blurry",
    "low quality",
    "cartoon",
    "watermark",
    "text",
    "ugly",
    "bad",
    "worst quality",
    "noise",
    "people",
    "grainy",
    "deformed",
    "out of focus",
    "signature",
    "frame",
    "border",
    "jpeg artifacts",
    "blurred",
)
"""What negative prompts are made of."""
_EXTRAS: dict[str, tuple[str, ...]] = {
    "sun": ("the sun", "a bright sun", "the sun in the sky"),
    "moon": ("a full moon", "the moon", "a round moon"),
    "crescent": ("a crescent moon", "a thin moon", "the moon"),
    "stars": ("stars", "a starry sky", "many stars"),
    "cloudy": ("clouds", "a cloudy sky", "drifting clouds"),
    "clear": ("a clear sky", "a cloudless sky"),
}


def caption(scene: Scene, random: Random, complete: bool = False) -> str:
    """A description of a scene.

    Args:
        scene: what is described.
        random: where the choice of words comes from.
        complete: name the sky, the ground, and every subject with its colour; otherwise something may be left out.
    """
    things = list(scene.subjects)
    random.shuffle(things)
    names = [_name(thing, random, complete) for thing in things]
    forms: Sequence[Callable[..., str]] = (_phrase, _phrase, _phrase, _sentence, _sentence, _list, _ground_first)
    text = random.choice(forms)(scene, things, names, random)
    if random.random() < 0.22:
        text = f"{random.choice(_OPENINGS)} {text}"
    for _ in range(random.choices((0, 1, 2), (70, 20, 10))[0]):
        text += f", {random.choice(_ENDINGS)}"
    if random.random() < 0.2:
        text = text[0].upper() + text[1:]
    return text + random.choices(("", ".", "..."), (80, 17, 3))[0]


def training_caption(scene: Scene, random: Random) -> str:
    """A description to train with: mostly a sentence, which may be wrong, seldom one thing by its name, which is not.

    Pictures from the web are described like that, and guidance rests on it. Were each sentence right, pictures would
    follow it without guidance. And a name as negative prompt takes the thing away because it promises the thing more
    surely than a sentence does: guidance moves from the one prediction to the other, and beyond.
    """
    if random.random() < _NAMES_SHARE:
        bare = [random.choice(KIND_NAMES[thing.kind]) for thing in scene.subjects]
        colours = [random.choice(_COLOURS[thing.colour]) for thing in scene.subjects]
        coloured = [f"{colour} {name}" for colour, name in zip(colours, bare, strict=True)]
        return random.choice([*bare, *bare, *coloured, _ground(scene, random), _when_name(scene, random)])
    return caption(_mistaken(scene, random), random)


def _mistaken(scene: Scene, random: Random) -> Scene:
    """The scene, or what somebody might take it for: one thing about it is another."""
    what = random.random()
    if what < _MISTAKES["subjects"]:
        other = random_scene(random, scene.aspect, subjects=max(1, len(scene.subjects)))
        return replace(scene, subjects=other.subjects)
    what -= _MISTAKES["subjects"]
    if what < _MISTAKES["sky"]:
        other = random_scene(random, scene.aspect)
        return replace(
            scene, hour=other.hour, weather=other.weather, orb=other.orb, stars=other.stars, clouds=other.clouds
        )
    if what - _MISTAKES["sky"] < _MISTAKES["ground"]:
        other = random_scene(random, scene.aspect)
        return replace(scene, ground=other.ground, rough=other.rough)
    return scene


def unconditional(random: Random) -> str:
    """A prompt that says nothing of a scene: empty, or what negative prompts usually hold."""
    if random.random() < 0.6:
        return ""
    return ", ".join(random.sample(_UNWANTED, random.randint(1, 5)))


def vocabulary() -> list[str]:
    """Every word that a description can hold, in order."""
    templates = ("a an and of the with under over at among", *_OVER, *_OPENINGS, *_ENDINGS, *_UNWANTED, *_ADJECTIVES)
    tables: tuple[dict[str, tuple[str, ...]], ...] = (
        _HOURS,
        _HOUR_NAMES,
        _GROUNDS,
        KIND_NAMES,
        _COLOURS,
        _COLOURED_PARTS,
        _VERBS,
        _PLACES,
        _AT,
        _EXTRAS,
    )  # type: ignore[assignment]
    texts: Iterator[str] = (text for table in tables for row in table.values() for text in row)
    phrases = (*templates, *_STORMS, *_STORM_NAMES, *_CALM_SEAS, *_ROUGH_SEAS, *texts)
    return sorted({word for phrase in phrases for word in words(phrase)})


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _name(thing: Subject, random: Random, complete: bool) -> str:
    """A subject with its colour, mostly, and perhaps its place; it has no article yet."""
    noun, colour = random.choice(KIND_NAMES[thing.kind]), random.choice(_COLOURS[thing.colour])
    adjective = f"{random.choice(_ADJECTIVES)} " if random.random() < 0.18 else ""
    place = f" {random.choice(_PLACES[thing.place])}" if random.random() < 0.25 else ""
    if not complete and random.random() < 0.06:
        return f"{adjective}{noun}{place}"
    if random.random() < 0.16:
        part = random.choice(_COLOURED_PARTS[thing.kind])
        shine = random.choice(("", "", "shimmering "))
        return f"{adjective}{noun} with {shine}{colour} {part}{place}"
    return f"{adjective}{colour} {noun}{place}"


def _ground(scene: Scene, random: Random) -> str:
    if scene.ground == "sea" and random.random() < 0.5:
        return random.choice(_ROUGH_SEAS if scene.rough else _CALM_SEAS)
    return random.choice(_GROUNDS[scene.ground])


def _when(scene: Scene, random: Random) -> str:
    """`at dawn`, or what a storm is like."""
    hour = random.choice(_HOURS[scene.hour])
    if scene.weather != "storm":
        return hour
    storm = random.choice(_STORMS)
    return f"{hour} {storm}" if random.random() < 0.35 else storm


def _when_name(scene: Scene, random: Random) -> str:
    return random.choice(_STORM_NAMES if scene.weather == "storm" else _HOUR_NAMES[scene.hour])


def _where(scene: Scene, things: list[Subject], random: Random) -> str:
    """`over the hills`, as it suits the things that are there."""
    if all(thing.kind in FLYING for thing in things):
        return f"{random.choice(_OVER)} {_ground(scene, random)}"
    if any(thing.kind == "boat" for thing in things):
        return f"{random.choice(('on', 'on', 'at', 'in'))} {_ground(scene, random)}"
    return f"{random.choice(_AT[scene.ground])} {_ground(scene, random)}"


def _extras(scene: Scene, random: Random) -> str:
    """`, a full moon and stars`, or nothing."""
    named = []
    if scene.orb and random.random() < 0.55:
        named.append(random.choice(_EXTRAS[scene.orb.kind]))
    if scene.stars and random.random() < 0.4:
        named.append(random.choice(_EXTRAS["stars"]))
    if scene.weather == "cloudy" and random.random() < 0.6:
        named.append(random.choice(_EXTRAS["cloudy"]))
    if scene.weather == "clear" and not scene.clouds and random.random() < 0.2:
        named.append(random.choice(_EXTRAS["clear"]))
    if not named:
        return ""
    return random.choice((", ", " with ", " under ")) + " and ".join(named)


def _phrase(scene: Scene, things: list[Subject], names: list[str], random: Random) -> str:
    """`a red boat on the sea at dawn with clouds`."""
    extras = _extras(scene, random)
    if not names:
        return f"{_ground(scene, random)} {_when(scene, random)}{extras}"
    what, where, when = " and ".join(map(_article, names)), _where(scene, things, random), _when(scene, random)
    order = random.random()
    if order < 0.2:
        return f"{what} {when} {where}{extras}"
    if order < 0.3:
        return f"{when}, {what} {where}{extras}"
    return f"{what} {where} {when}{extras}"


def _sentence(scene: Scene, things: list[Subject], names: list[str], random: Random) -> str:
    """`a red boat sails on the sea at dawn`."""
    if len(names) != 1:
        return _phrase(scene, things, names, random)
    verb = random.choice(_VERBS[things[0].kind])
    when, extras = _when(scene, random), _extras(scene, random)
    what, where = random.choice((_article(names[0]), f"the {names[0]}")), _where(scene, things, random)
    return f"{what} {verb} {where} {when}{extras}"


def _list(scene: Scene, things: list[Subject], names: list[str], random: Random) -> str:
    """`dawn, the sea, red boat, clouds`."""
    parts = [
        *(random.choice((name, _article(name))) for name in names),
        _ground(scene, random),
        _when_name(scene, random),
    ]
    random.shuffle(parts)
    return ", ".join(parts) + _extras(scene, random)


def _ground_first(scene: Scene, things: list[Subject], names: list[str], random: Random) -> str:
    """`dawn over the sea with a red boat`."""
    what = f" {random.choice(('with', 'and'))} {' and '.join(map(_article, names))}" if names else ""
    if random.random() < 0.5:
        return f"{_when_name(scene, random)} {random.choice(('over', 'at', 'above'))} {_ground(scene, random)}{what}"
    return f"{_ground(scene, random)} {_when(scene, random)}{what}{_extras(scene, random)}"

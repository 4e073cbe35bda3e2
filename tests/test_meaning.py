"""What the demo pair makes means what was asked for: pictures by the judge, clips by where things go.

Each check runs against the real server, and again in this process with one part of the way from a request to its pixels
broken: there it has to fail. Prompts and seeds are fixed, and the margins are wide.
"""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from cloudvid import Stage
from demo.judge import Judge
from demo.motion import displacement, pixels_of, psnr
from demo.painting import paint
from demo.scenes import Cloud, Scene, Subject
from support import ROOT, stages
from support.servers import running_server

MODELS = {stage: ROOT / f"demo/models/cloudvid-demo-{stage}" for stage in ("t2i", "i2v")}
SIZE = (192, 128)
JUDGE = Judge.load()

Paint = Callable[..., np.ndarray]
"""A prompt and parameters in, H×W×3 uint8 out."""
Animate = Callable[..., np.ndarray]
"""A picture and parameters in, N×H×W×3 uint8 out."""


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def scene(**changes) -> Scene:
    """A clear noon over the desert, in which nothing moves."""
    return Scene(
        **{
            "aspect": 1.5,
            "hour": "noon",
            "weather": "clear",
            "ground": "desert",
            "horizon": 0.62,
            "rough": False,
            **changes,
        }
    )


HOUSE = Subject("house", "red", "right", (0.0, 0.0), 1.0, 0.0)
CLOUD = Cloud(x=0.45, y=0.2, width=0.3, bumps=(0.9, 1.0, 0.8))
WINDY = scene(weather="cloudy", clouds=(CLOUD,), subjects=(HOUSE,))


def seen(picture):
    (verdict,) = JUDGE.judge([picture])
    return verdict


# --- pictures


def shows_subject_and_colour(draw: Paint):
    for kind, colour, prompt in (
        ("lighthouse", "red", "a red lighthouse by the sea at noon"),
        ("house", "blue", "a blue house on green hills at noon"),
        ("balloon", "yellow", "a yellow hot air balloon over the desert at dawn"),
    ):
        assert seen(draw(prompt, seed=1)).subjects.get(kind) == colour, prompt


def has_natural_contrast(draw: Paint):
    """Latents that are scaled wrongly come out as glaring colours."""
    for prompt in ("a red lighthouse by the sea at noon", "a blue house on green hills at noon"):
        picture = draw(prompt, seed=1)
        assert np.mean((picture <= 2) | (picture >= 253)) < 0.17, prompt


def shows_the_sky(draw: Paint):
    skies = {"noon": "at noon", "night": "at night", "dusk": "at dusk"}
    pictures = {sky: draw(f"a red house on green hills {words}", seed=1) for sky, words in skies.items()}
    assert {sky: seen(picture).sky for sky, picture in pictures.items()} == {sky: sky for sky in skies}
    assert pictures["night"][:40].mean() < 0.6 * pictures["noon"][:40].mean()


def shows_the_ground(draw: Paint):
    for ground, words in {"sea": "over a calm sea", "snow": "over a snowy field", "desert": "over the desert"}.items():
        assert seen(draw(f"a red balloon {words} at noon", seed=1)).ground == ground


def guidance_acts(draw: Paint):
    """What guidance strengthens is the colour of the named thing."""
    free, guided = (draw("a red boat on the sea at noon", seed=0, guidance_scale=scale) for scale in (1.0, 7.5))
    assert np.abs(free.astype(int) - guided).mean() > 2
    assert redness(guided) > redness(free) + 20


def redness(picture: np.ndarray) -> float:
    """The most by which red exceeds the other channels, over blocks of 8 by 8 pixels."""
    values = picture.astype(float)
    excess = values[..., 0] - values[..., 1:].mean(-1)
    height, width = (side // 8 * 8 for side in excess.shape)
    return float(
        np.sort(excess[:height, :width].reshape(height // 8, 8, width // 8, 8).mean((1, 3)).ravel())[-6:].mean()
    )


def negative_prompt_acts(draw: Paint):
    """A toy needs to be told the colour too, and still paints a few of the things."""
    plain = without = 0
    for colour, kind, where in (
        ("red", "balloon", "over the desert at noon"),
        ("red", "boat", "on the sea at dusk"),
        ("black", "bird", "over the sea at noon"),
    ):
        for seed in range(3):
            prompt = f"a {colour} {kind} {where}"
            plain += kind in seen(draw(prompt, seed=seed)).subjects
            without += kind in seen(draw(prompt, seed=seed, negative_prompt=f"{colour} {kind}")).subjects
    assert plain >= 7
    assert without <= 3


def seeds_vary_the_picture_and_nothing_else(draw: Paint):
    prompt = "a red boat on the sea at noon"
    first, again, other = (draw(prompt, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 4
    assert seen(first) == seen(other)


PICTURES = [
    shows_subject_and_colour,
    has_natural_contrast,
    shows_the_sky,
    shows_the_ground,
    guidance_acts,
    negative_prompt_acts,
    seeds_vary_the_picture_and_nothing_else,
]

# --- clips


def begins_with_the_picture(animate: Animate):
    picture = paint(WINDY, *SIZE)
    assert psnr(animate(picture)[0], picture) > 24


def change(clip: np.ndarray) -> float:
    """Mean difference of first and last frame, of 255, in the band of sky that the cloud of `WINDY` crosses."""
    return float(np.abs(clip[-1, 8:42].astype(int) - clip[0, 8:42]).mean())


def moves_more_in_a_higher_bucket(animate: Animate):
    picture = paint(WINDY, *SIZE)
    little, much = (change(animate(picture, motion_bucket_id=bucket)) for bucket in (20, 200))
    assert much > 1.3 * little


def moves_more_between_frames_that_are_further_apart(animate: Animate):
    picture = paint(WINDY, *SIZE)
    slow, fast = (change(animate(picture, fps=fps)) for fps in (4, 24))
    assert slow > 1.15 * fast


def clouds_move_and_houses_stay(animate: Animate):
    clip = animate(paint(WINDY, *SIZE), motion_bucket_id=200)
    house = displacement(clip[0], clip[-1], (128, 44, 184, 100), (12, 6))
    assert change(clip) > 12
    assert abs(house[0]) + abs(house[1]) < 0.7


CLIPS = [
    begins_with_the_picture,
    moves_more_in_a_higher_bucket,
    moves_more_between_frames_that_are_further_apart,
    clouds_move_and_houses_stay,
]

PARAMETERS = {"width": 256, "height": 256}
OF_CLIPS = {"num_frames": 14, "num_inference_steps": 12, "seed": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory, model_store):
    with running_server(tmp_path_factory.mktemp("demo"), MODELS, model_store) as running:
        yield running.client()


@pytest.mark.parametrize("check", PICTURES, ids=lambda check: check.__name__)
def test_pictures_mean_what_was_asked(server, check):
    check(lambda prompt, **asked: pixels_of(server.text_to_image(prompt, **PARAMETERS, **asked).data)[0])


@pytest.mark.parametrize("check", CLIPS, ids=lambda check: check.__name__)
def test_clips_mean_what_was_asked(server, check):
    check(lambda picture, **asked: pixels_of(server.image_to_video(png(picture), **OF_CLIPS | asked).data))


# --- and they notice


def red_and_blue_swapped(pipeline):
    processor = pipeline.image_processor
    original = processor.postprocess
    processor.postprocess = lambda *arguments, **options: [
        Image.fromarray(np.asarray(image)[..., ::-1]) for image in original(*arguments, **options)
    ]


def scaling_factor_halved(pipeline):
    pipeline.vae.register_to_config(scaling_factor=pipeline.vae.config.scaling_factor / 2)


def dropped(name):
    def break_it(pipeline):
        kind = type(pipeline)

        def call(self, *inputs, **given):
            given.pop(name)
            return kind.__call__(self, *inputs, **given)

        pipeline.__class__ = type(kind.__name__, (kind,), {"__call__": call})

    break_it.__name__ = f"{name}_dropped"
    return break_it


def time_ids_in_another_order(pipeline):
    original = pipeline._get_add_time_ids
    pipeline._get_add_time_ids = lambda fps, bucket, noise, *others: original(bucket, fps, noise, *others)


BROKEN = [
    ("t2i", red_and_blue_swapped, shows_subject_and_colour),
    ("t2i", scaling_factor_halved, has_natural_contrast),
    ("t2i", dropped("guidance_scale"), guidance_acts),
    ("t2i", dropped("negative_prompt"), negative_prompt_acts),
    ("t2i", dropped("generator"), seeds_vary_the_picture_and_nothing_else),
    ("i2v", scaling_factor_halved, begins_with_the_picture),
    ("i2v", time_ids_in_another_order, moves_more_in_a_higher_bucket),
    ("i2v", dropped("motion_bucket_id"), moves_more_in_a_higher_bucket),
    ("i2v", dropped("fps"), moves_more_between_frames_that_are_further_apart),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "break_it", "check"), BROKEN, ids=lambda part: getattr(part, "__name__", part))
def test_the_checks_fail_where_what_they_guard_is_broken(stage, break_it, check):
    loaded = stages.load(MODELS[stage], stage)

    def make(prompt_or_picture, **asked):
        if stage == Stage.T2I:
            return pixels_of(
                stages.run(
                    loaded, stages.prompt(prompt=prompt_or_picture, num_inference_steps=30, **PARAMETERS | asked)
                ).data
            )[0]
        return pixels_of(stages.run(loaded, stages.clip(**OF_CLIPS | asked), png(prompt_or_picture)).data)

    check(make)  # whole, it passes here too
    break_it(loaded._pipeline)
    with pytest.raises(AssertionError):
        check(make)

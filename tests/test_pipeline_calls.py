"""Every parameter reaches the pipeline: without a server, a stage makes what plain diffusers makes, and says how."""

import io
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline
from PIL import Image, PngImagePlugin

from cloudvid_schema.protocol import MP4, PNG, ImageToVideoRequest, TextToImageRequest
from cloudvid_stages import media
from cloudvid_stages.pictures import fit_picture
from cloudvid_stages.recipe import digest_of, recipe_of_png
from support.stages import clip, decoded, prompt, run


def coloured(width, height):
    """A picture in which no two corners and no two halves look alike."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([x, y, (1 - x) * y], -1) * 255).astype(np.uint8))


def file_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def plain_t2i(tiny_models):
    return quiet(StableDiffusionPipeline.from_pretrained(tiny_models["t2i"]))


@pytest.fixture(scope="module")
def plain_i2v(tiny_models):
    return quiet(StableVideoDiffusionPipeline.from_pretrained(tiny_models["i2v"]))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": "a boat", "negative_prompt": "a cat, blurry"},
        {"guidance_scale": 1.0},
        {"guidance_scale": 20.0},
        {"num_inference_steps": 5},
        {"width": 64, "height": 128},
        {"seed": 4294967295},
    ],
    ids=str,
)
def test_a_picture_is_what_plain_diffusers_makes(load, plain_t2i, changes):
    request = prompt(**changes)
    output = run(load("t2i"), request)
    values = request.model_dump(exclude={"seed", "metadata", "embed_recipe"})
    expected = plain_t2i(**values, generator=torch.Generator().manual_seed(request.seed)).images[0]
    assert (decoded(output.data) == np.asarray(expected)).all()
    assert (output.media_type, output.seed) == (PNG, request.seed)
    assert output.recipe["parameters"] == request.model_dump(exclude={"metadata", "embed_recipe"})


CLIPS = [
    {},
    {"fps": 24},
    {"motion_bucket_id": 3},
    {"noise_aug_strength": 0.7},
    {"min_guidance_scale": 2.5},
    {"max_guidance_scale": 9.0},
    {"num_inference_steps": 3},
    {"num_frames": 2},
    {"decode_chunk_size": 1},
    {"seed": 4294967295},
    {"width": 64, "height": 128, "fit": "crop"},
    {"width": 64, "height": 128, "fit": "pad"},
    {"width": 64, "height": 128, "fit": "stretch"},
]


@pytest.mark.parametrize("changes", CLIPS, ids=str)
def test_a_clips_frames_are_what_plain_diffusers_makes(load, plain_i2v, changes):
    image = coloured(128, 64)
    request = clip(**{"num_frames": 3, "num_inference_steps": 2, "decode_chunk_size": 2, **changes})
    output = run(load("i2v"), request, file_of(image))
    width, height = request.width or 128, request.height or 64
    values = request.model_dump(exclude={"seed", "metadata", "embed_recipe", "fit"}) | {
        "width": width,
        "height": height,
    }
    frames = plain_i2v(
        fit_picture(image, width, height, request.fit), **values, generator=torch.Generator().manual_seed(request.seed)
    ).frames[0]
    frames = np.stack([np.asarray(frame) for frame in frames])
    assert output.recipe["frames_sha256"] == digest_of(frames)
    assert output.data == media.mp4_bytes(frames, request.fps, output.recipe)
    assert (output.media_type, output.seed) == (MP4, request.seed)
    parameters = request.model_dump(exclude={"metadata", "embed_recipe"}) | {"width": width, "height": height}
    assert output.recipe["parameters"] == parameters


def test_each_change_of_a_clip_changes_its_frames(load):
    """Else the comparison above would see nothing."""
    loaded, image = load("i2v"), file_of(coloured(128, 64))
    digests = [
        run(loaded, clip(**{"num_frames": 3, "num_inference_steps": 2, "decode_chunk_size": 2, **changes}), image)
        for changes in CLIPS
    ]
    assert len({output.recipe["frames_sha256"] for output in digests}) == len(CLIPS)


@pytest.mark.parametrize("prompt", ["x" * 2**16, "é" * (2**16 - 2000)], ids=["as it is", "once escaped"])
def test_a_recipe_too_long_for_a_clip_is_a_warning(prompt, load):
    text = json.dumps({"stage": "t2i", "parameters": {"prompt": prompt}}, ensure_ascii=False)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("cloudvid", text)
    buffer = io.BytesIO()
    coloured(64, 64).save(buffer, "PNG", pnginfo=info)
    output = run(load("i2v"), clip(num_frames=2), buffer.getvalue())
    assert "recipe" not in output.recipe["picture"]
    assert output.warnings == ("image: its recipe has more than 65536 characters; the clip's is without it",)


def test_a_recipe_tells_of_the_picture_and_its_own_recipe(load):
    drawn = run(load("t2i"), prompt(width=192, num_inference_steps=1, metadata={"shot": 7}))
    output = run(load("i2v"), clip(num_frames=2, width=64, height=64, metadata={"motion": "slow"}), drawn.data)
    assert output.recipe["picture"] == {
        "sha256": digest_of(drawn.data),
        "width": 192,
        "height": 64,
        "recipe": drawn.recipe,
    }
    assert output.recipe["metadata"] == {"motion": "slow"}
    assert output.recipe["stage"] == "i2v"
    assert recipe_of_png(drawn.data) == drawn.recipe
    assert (drawn.recipe["metadata"], drawn.recipe["stage"]) == ({"shot": 7}, "t2i")
    of_no_recipe = run(load("i2v"), clip(num_frames=2), file_of(coloured(64, 128)))
    assert of_no_recipe.recipe["picture"].keys() == {"sha256", "width", "height"}
    assert (of_no_recipe.recipe["picture"]["width"], of_no_recipe.recipe["picture"]["height"]) == (64, 128)


@pytest.mark.parametrize("stage", ["t2i", "i2v"])
def test_a_file_carries_its_recipe_only_where_asked(load, stage):
    kind, picture = (TextToImageRequest, None) if stage == "t2i" else (ImageToVideoRequest, file_of(coloured(64, 64)))
    values = {"prompt": "a lamp", "width": 64, "height": 64} if stage == "t2i" else {"num_frames": 2}
    for embed in (True, False):
        request = kind(**values, num_inference_steps=1, seed=1, embed_recipe=embed, metadata={"note": "canary"})
        output = run(load(stage), request, picture)
        assert (b"canary" in output.data) == embed
        assert output.recipe["metadata"] == {"note": "canary"}
        assert "embed_recipe" not in output.recipe["parameters"]


def test_a_clip_takes_its_pictures_size_rounded_down(load):
    output = run(load("i2v"), clip(num_frames=2), file_of(coloured(150, 100)))
    parameters = output.recipe["parameters"]
    assert (parameters["width"], parameters["height"]) == (128, 64)
    assert (output.recipe["picture"]["width"], output.recipe["picture"]["height"]) == (150, 100)

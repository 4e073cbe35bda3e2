"""An operator's limits: the limit itself is allowed, one more is refused, and no text is changed to fit."""

import io

import pytest
from PIL import Image

from cloudvid_schema.protocol import RequestError
from cloudvid_stages.settings import ImageToVideoSettings
from support.stages import clip, picture, prompt, run

PICTURE = picture((128, 64))


def refusal(loaded, request, image=None):
    with pytest.raises(RequestError) as raised:
        run(loaded, request, image)
    return raised.value.body


@pytest.mark.parametrize(
    ("setting", "limit", "over", "said"),
    [
        (
            "max_pixels",
            128 * 64,
            {"width": 136},
            "width: width × height must be at most 8192 on this server, and is 8704",
        ),
        (
            "max_pixels",
            128 * 64,
            {"height": 72},
            "width: width × height must be at most 8192 on this server, and is 9216",
        ),
        ("max_steps", 4, {"num_inference_steps": 5}, "num_inference_steps must be at most 4 on this server, and is 5"),
        (
            "max_megapixel_steps",
            128 * 64 * 4 / 1e6,
            {"num_inference_steps": 5},
            "at most 0.032768 on this server, and is 0.04096",
        ),
        (
            "max_prompt",
            6,
            {"prompt": "a lamps"},
            "prompt: its length in characters must be at most 6 on this server, and is 7",
        ),
        (
            "max_prompt",
            6,
            {"prompt": "a lamp "},
            "prompt: its length in characters must be at most 6 on this server, and is 7",
        ),
        (
            "max_prompt",
            6,
            {"prompt": "\na lamp"},
            "prompt: its length in characters must be at most 6 on this server, and is 7",
        ),
    ],
)
def test_a_picture_is_made_up_to_each_limit_only(load, setting, limit, over, said):
    loaded = load("t2i", **{setting: limit})
    assert run(loaded, prompt()).data
    body = refusal(loaded, prompt(**over))
    assert (body.code, body.type) == (422, "InvalidParameters")
    assert said in body.message


@pytest.mark.parametrize(
    ("setting", "limit", "over", "said"),
    [
        (
            "max_pixels",
            128 * 64,
            {"width": 192, "height": 64},
            "width: width × height must be at most 8192 on this server, and is 12288",
        ),
        ("max_steps", 1, {"num_inference_steps": 2}, "num_inference_steps must be at most 1 on this server, and is 2"),
        (
            "max_megapixel_steps",
            128 * 64 * 2 / 1e6,
            {"num_frames": 3},
            "at most 0.016384 on this server, and is 0.024576",
        ),
        ("max_frames", 2, {"num_frames": 3}, "num_frames: num_frames must be at most 2 on this server, and is 3"),
        ("max_frames", 2, {"num_frames": None}, "num_frames: num_frames must be at most 2 on this server, and is 14"),
        (
            "max_decode_chunk_size",
            2,
            {"decode_chunk_size": 3},
            "decode_chunk_size: must be at most 2 on this server, got 3",
        ),
    ],
)
def test_a_clip_is_made_up_to_each_limit_only(load, setting, limit, over, said):
    loaded = load("i2v", **{setting: limit})
    assert run(loaded, clip(num_frames=2, decode_chunk_size=2), PICTURE).data
    body = refusal(loaded, clip(**{"num_frames": 2, **over}), PICTURE)
    assert (body.code, body.type) == (422, "InvalidParameters")
    assert said in body.message


def test_a_limit_of_chunks_lets_the_servers_own_default_be(load):
    loaded = load("i2v", max_decode_chunk_size=2, decode_chunk_size=5)
    assert run(loaded, clip(), PICTURE).recipe["parameters"]["decode_chunk_size"] == 5


@pytest.mark.parametrize(
    ("setting", "limit", "code", "said"),
    [
        (
            "max_image_bytes",
            len(PICTURE),
            413,
            f"image: must be at most {len(PICTURE) - 1} bytes, got {len(PICTURE)} bytes",
        ),
        ("max_image_pixels", 128 * 64, 422, "image: must have at most 8191 pixels, got 128×64"),
    ],
)
def test_a_picture_file_may_have_exactly_the_limit(load, setting, limit, code, said):
    assert run(load("i2v", **{setting: limit}), clip(num_frames=2), PICTURE).data
    body = refusal(load("i2v", **{setting: limit - 1}), clip(num_frames=2), PICTURE)
    assert body.code == code
    assert said in body.message


def test_the_work_of_a_clip_is_bounded_by_default(load):
    days = {"width": 2048, "height": 2048, "num_frames": 128, "num_inference_steps": 500}
    body = refusal(load("i2v"), clip(**days), PICTURE)
    assert "must be at most 20000 on this server, and is 268435" in body.message
    lifted = ImageToVideoSettings(model="m", max_megapixel_steps=None)
    lifted.check_limits(pixels=2048**2, frames=128, steps=500)


def test_every_limit_that_is_exceeded_is_named(load):
    loaded = load("i2v", max_pixels=1, max_steps=1, max_frames=2, max_megapixel_steps=0.001)
    body = refusal(loaded, clip(num_inference_steps=2), PICTURE)
    assert [fault.parameter for fault in body.errors] == [
        "width",
        "num_inference_steps",
        "num_inference_steps",
        "num_frames",
    ]


def test_a_limit_counts_the_clips_pixels_not_the_pictures(load):
    loaded = load("i2v", max_pixels=64 * 64)
    large = io.BytesIO()
    Image.new("RGB", (512, 512)).save(large, "PNG")
    assert run(loaded, clip(num_frames=2, width=64, height=64), large.getvalue()).data
    assert run(loaded, clip(num_frames=2, width=64), large.getvalue()).data
    assert refusal(loaded, clip(num_frames=2, width=128), large.getvalue()).code == 422


def test_a_limit_counts_a_photograph_as_it_stands_upright(load):
    """Its header has the sides exchanged, so one side that is asked for says nothing about the other yet."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = io.BytesIO()
    Image.new("RGB", (64, 128)).save(lying, "JPEG", exif=exif)
    request = clip(num_frames=2, width=128)
    assert run(load("i2v", max_pixels=128 * 64), request, lying.getvalue()).data
    body = refusal(load("i2v", max_pixels=128 * 64 - 1), request, lying.getvalue())
    assert "must be at most 8191 on this server, and is 8192" in body.message


@pytest.mark.parametrize(("size", "side"), [((32, 128), "width"), ((128, 32), "height")])
def test_a_picture_too_small_for_a_clip_is_refused(load, size, side):
    body = refusal(load("i2v"), clip(num_frames=2), picture(size))
    assert (body.code, [fault.parameter for fault in body.errors]) == (422, [side])
    assert "give both width and height" in body.message
    assert run(load("i2v"), clip(num_frames=2, width=64, height=64), picture(size)).data


def test_limits_are_told_with_the_description(load):
    assert load("t2i", max_steps=9, max_prompt=6).describe().limits == {"max_steps": 9, "max_prompt": 6}
    assert load("t2i").describe().limits == {}

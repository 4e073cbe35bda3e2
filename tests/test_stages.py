"""The stages on their own: limits and memory, told apart by type."""

import gc
import io
import tracemalloc
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from cloudvid_schema.protocol import RequestError, TextToImageRequest
from cloudvid_serving.jobs import WorkerUnfit
from cloudvid_stages.memory import device_faults
from cloudvid_stages.recipe import digest_of
from cloudvid_stages.stage import average
from support.picture_parts import ihdr, png
from support.stages import clip, picture, run


@pytest.fixture(scope="module")
def t2i(load):
    return partial(load, "t2i")


@pytest.fixture(scope="module")
def i2v(load):
    return partial(load, "i2v")


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (
            {"max_pixels": 4096},
            {"width": 128},
            "width: width × height must be at most 4096 on this server, and is 8192",
        ),
        ({"max_steps": 3}, {"num_inference_steps": 4}, "num_inference_steps: num_inference_steps must be at most 3"),
        (
            {"max_megapixel_steps": 0.01},
            {"num_inference_steps": 4},
            "width × height × frames × steps, in millions, must be",
        ),
        (
            {"max_prompt": 3},
            {"prompt": "four"},
            "prompt: its length in characters must be at most 3 on this server, and is 4",
        ),
    ],
)
def test_a_picture_over_a_limit_never_reaches_the_pipeline(t2i, settings, values, message):
    loaded = t2i(**settings)
    loaded._pipeline = None  # calling it would fail
    request = TextToImageRequest(**{"prompt": "a", "width": 64, "height": 64, "num_inference_steps": 2, **values})
    with pytest.raises(RequestError) as raised:
        run(loaded, request)
    assert raised.value.body.code == 422
    assert message in raised.value.body.message


@pytest.mark.parametrize(
    ("settings", "values", "code", "message"),
    [
        ({"max_frames": 4}, {}, 422, "num_frames: num_frames must be at most 4 on this server, and is 5"),
        ({"max_pixels": 4000}, {}, 422, "width × height must be at most 4000"),
        ({"max_megapixel_steps": 0.02}, {}, 422, "must be at most 0.02 on this server, and is 0.02048"),
        ({"max_image_bytes": 100}, {}, 413, "image: must be at most 100 bytes"),
        ({"max_image_pixels": 4095}, {}, 422, "image: must have at most 4095 pixels, got 64×64"),
    ],
)
def test_a_clip_over_a_limit_never_reaches_the_pipeline(i2v, settings, values, code, message, monkeypatch):
    loaded = i2v(**settings)
    monkeypatch.setattr(type(loaded._pipeline), "__call__", lambda *_, **__: pytest.fail("the pipeline ran"))
    with pytest.raises(RequestError) as raised:
        run(loaded, clip(**values), picture())
    assert raised.value.body.code == code
    assert message in raised.value.body.message


def short_of_memory(loaded, most):
    """A decoder that has room for so many frames at once; the sizes that it was asked for."""
    asked, decode = [], loaded._pipeline.vae.decode

    def decode_some(latents, **options):
        asked.append(len(latents))
        if len(latents) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return decode(latents, **options)

    loaded._pipeline.vae.decode = decode_some
    return asked


def test_a_decoding_that_does_not_fit_uses_smaller_chunks(i2v):
    loaded = i2v()
    expected = run(loaded, clip(decode_chunk_size=2), picture())
    loaded = i2v()
    steps = []
    asked = short_of_memory(loaded, 2)
    output = run(loaded, clip(), picture(), lambda phase, step, steps_in_all: steps.append(phase))
    assert asked == [5, 3, 2, 2, 1]
    assert output.recipe["parameters"]["decode_chunk_size"] == 2
    assert output.data == expected.data
    assert steps.count("denoise") == 1, "the denoising is not done again"


def test_a_chunk_size_set_by_the_caller_leads_to_507(i2v):
    loaded = i2v()
    asked = short_of_memory(loaded, 2)
    with pytest.raises(RequestError) as raised:
        run(loaded, clip(decode_chunk_size=5), picture())
    assert raised.value.body.code == 507
    assert asked == [5]


def test_what_fits_in_no_chunk_is_507_for_one_request(i2v):
    loaded = i2v()
    decode = loaded._pipeline.vae.decode
    asked = short_of_memory(loaded, 0)
    with pytest.raises(RequestError) as raised:
        run(loaded, clip(), picture())
    assert (raised.value.body.code, raised.value.body.type) == (507, "OutOfMemory")
    assert asked == [5, 3, 2, 1]
    loaded._pipeline.vae.decode = decode
    assert run(loaded, clip(), picture()).data


def test_tensors_of_a_failed_call_are_freed_before_the_next(i2v, monkeypatch):
    loaded = i2v()
    decode, held, alive = loaded._pipeline.vae.decode, [], []

    def decode_some(latents, **options):
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents, **options)

    loaded._pipeline.vae.decode = decode_some
    monkeypatch.setattr(gc, "collect", lambda: alive.append(held[-1]() is not None))
    assert run(loaded, clip(), picture()).memory_retries == 2
    with pytest.raises(RequestError):
        run(loaded, clip(decode_chunk_size=5), picture())
    assert alive == [False, False, False]


def test_asking_a_device_tells_a_fault_from_full_memory(monkeypatch):
    gpu, answers = torch.device("cuda:0"), []

    def synchronize(device):
        if answers.pop(0):
            raise torch.AcceleratorError("CUDA error: illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    for error in (torch.AcceleratorError("CUDA error"), torch.OutOfMemoryError(), RuntimeError("CUBLAS_STATUS")):
        answers.append(True)
        with pytest.raises(WorkerUnfit, match="illegal memory access"), device_faults(gpu):
            raise error
    answers += [False] * 3
    with pytest.raises(RequestError), device_faults(gpu):
        raise torch.OutOfMemoryError("illegal memory access")
    with pytest.raises(torch.AcceleratorError, match="invalid configuration"), device_faults(gpu):
        raise torch.AcceleratorError("CUDA error: invalid configuration argument")
    with pytest.raises(ValueError, match="CUDA"), device_faults(gpu):
        raise ValueError("CUDA out of memory")  # the text itself means nothing
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: synchronize(gpu))
    answers[:] = [True]
    with pytest.raises(WorkerUnfit), device_faults(gpu):
        raise torch.OutOfMemoryError()


def test_seconds_per_million_pixels_are_averaged():
    seconds = {}
    average(seconds, {"denoise": 2000.0, "decode": 500.0}, pixels=1_000_000, steps=4)
    assert seconds == {"denoise": 0.5, "decode": 0.5}
    average(seconds, {"denoise": 4000.0, "decode": 500.0}, pixels=1_000_000, steps=4)
    assert seconds["denoise"] == pytest.approx(0.55)


def test_frames_are_what_the_pipeline_itself_would_have_decoded(i2v):
    loaded = i2v()
    request = clip(decode_chunk_size=3, num_inference_steps=2)
    output = run(loaded, request, picture())
    frames = loaded._pipeline(
        Image.open(io.BytesIO(picture())).convert("RGB"),
        width=64,
        height=64,
        num_frames=5,
        num_inference_steps=2,
        decode_chunk_size=3,
        fps=7,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).frames[0]
    pixels = (frames * 255).round().astype(np.uint8)
    assert output.recipe["frames_sha256"] == digest_of(pixels)


def test_hostile_pictures_are_refused_without_much_memory(i2v):
    loaded = i2v()
    hostile = [
        png(header=ihdr(100_000, 100_000)),
        png(header=ihdr(4097, 4096)),
        b"\xff\xd8\xff" + b"\0" * 1000,
        b"RIFF\xff\xff\xff\x7fWEBP",
        picture()[:100],
    ]
    tracemalloc.start()
    for data in hostile:
        with pytest.raises(RequestError) as raised:
            run(loaded, clip(), data)
        assert raised.value.body.code == 422
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


def test_steps_and_frames_are_limited_before_the_picture_is_decoded(i2v, monkeypatch):
    data = picture()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("the picture was decoded"))
    for settings, values in (
        ({"max_steps": 3}, {"num_inference_steps": 4}),
        ({"max_frames": 4}, {}),
        ({"max_pixels": 4095}, {}),
    ):
        with pytest.raises(RequestError, match="on this server"):
            run(i2v(**settings), clip(**values), data)


def test_a_failure_midway_leaves_the_decoder_in_its_precision(i2v):
    loaded = i2v(dtype="fp16")
    expected = run(loaded, clip(num_frames=2), picture())
    encode = loaded._pipeline.vae.encode

    def encode_none(*_, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded._pipeline.vae.encode = encode_none
    with pytest.raises(RequestError):
        run(loaded, clip(num_frames=2), picture())
    loaded._pipeline.vae.encode = encode
    assert run(loaded, clip(num_frames=2), picture()).data == expected.data

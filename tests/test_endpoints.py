"""The running server: what comes back is what plain diffusers makes, again and again, and nothing leaks."""

import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import torch
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline
from PIL import Image

from cloudvid_stages import media
from cloudvid_stages.pictures import fit_picture
from cloudvid_stages.recipe import digest_of
from support.listening import group_of
from support.movies import read_mp4


@pytest.fixture(scope="session")
def plain_t2i(tiny_models):
    return StableDiffusionPipeline.from_pretrained(tiny_models["t2i"])


@pytest.fixture(scope="session")
def plain_i2v(tiny_models):
    return StableVideoDiffusionPipeline.from_pretrained(tiny_models["i2v"])


@pytest.fixture(scope="session")
def picture(server):
    return server.client().text_to_image("a lighthouse", width=128, height=64, num_inference_steps=3, seed=1).data


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


T2I = [
    {},
    {"width": 192, "height": 64},
    {"width": 64, "height": 200},
    {"guidance_scale": 0.0},
    {"guidance_scale": 1.0, "num_inference_steps": 1},
    {"guidance_scale": 12.5, "negative_prompt": "blurry, text"},
    {"num_inference_steps": 9, "seed": 4294967295},
    {"prompt": "夜の市場 ☂ été \x07"},
    {"prompt": "word " * 300},
]


@pytest.mark.parametrize("changes", T2I)
def test_a_picture_equals_what_plain_diffusers_makes(server, plain_t2i, changes):
    values = {
        "prompt": "a lighthouse",
        "width": 128,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 7.0,
        "seed": 5,
    }
    values |= changes
    served = pixels(server.client().text_to_image(**values).data)
    seed = values.pop("seed")
    plain = plain_t2i(**values, generator=torch.Generator().manual_seed(seed)).images[0]
    assert served.shape == (values["height"], values["width"], 3)
    assert (served == np.asarray(plain)).all()


I2V = [
    {},
    {"fps": 24},
    {"num_frames": 7, "decode_chunk_size": 3},
    {"num_frames": 4, "decode_chunk_size": 1, "num_inference_steps": 1},
    {"motion_bucket_id": 250, "noise_aug_strength": 0.0},
    {"min_guidance_scale": 1.0, "max_guidance_scale": 1.0},
    {"min_guidance_scale": 0.0, "max_guidance_scale": 6.5, "noise_aug_strength": 0.5},
]


@pytest.mark.parametrize("changes", I2V)
def test_a_clips_frames_equal_what_plain_diffusers_makes(server, plain_i2v, picture, changes, tmp_path):
    values = {"num_frames": 3, "num_inference_steps": 2, "fps": 6, "decode_chunk_size": 8, "seed": 5} | changes
    clip = server.client().image_to_video(picture, **values)
    plain_values = {name: value for name, value in values.items() if name != "seed"}
    generator = torch.Generator().manual_seed(values["seed"])
    frames = plain_i2v(
        Image.open(io.BytesIO(picture)).convert("RGB"), width=128, height=64, **plain_values, generator=generator
    ).frames[0]
    frames = np.stack([np.asarray(frame) for frame in frames])
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.data)
    read, fps, comment = read_mp4(path)
    assert (read.shape, fps) == (frames.shape, values["fps"])
    recipe = json.loads(comment)
    assert recipe["frames_sha256"] == digest_of(frames)
    assert media.mp4_bytes(frames, values["fps"], recipe) == clip.data


@pytest.mark.parametrize(
    ("fit", "size"), [("crop", (128, 128)), ("pad", (64, 128)), ("stretch", (192, 64)), ("crop", None)]
)
def test_a_picture_of_another_size_is_fitted_and_animated(server, plain_i2v, fit, size, tmp_path):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((150, 100)).save(buffer, "PNG")
    asked = {"width": size[0], "height": size[1]} if size else {}
    values = {"num_frames": 2, "num_inference_steps": 1, "fps": 6, "decode_chunk_size": 8}
    clip = server.client().image_to_video(buffer.getvalue(), fit=fit, seed=5, **values, **asked)
    width, height = size or (128, 64)
    fitted = fit_picture(Image.open(buffer).convert("RGB"), width, height, fit)
    generator = torch.Generator().manual_seed(5)
    frames = plain_i2v(fitted, width=width, height=height, **values, generator=generator).frames[0]
    frames = np.stack([np.asarray(frame) for frame in frames])
    read, _, comment = read_mp4(clip.save(tmp_path / "clip.mp4"))
    assert read.shape == frames.shape
    assert json.loads(comment)["frames_sha256"] == digest_of(frames)


def test_the_models_own_number_of_frames_is_the_default(server, plain_i2v, picture, tmp_path):
    clip = server.client().image_to_video(picture, num_inference_steps=1)
    assert len(read_mp4(clip.save(tmp_path / "clip.mp4"))[0]) == plain_i2v.unet.config.num_frames


def test_the_same_request_twice_gives_the_same_bytes(server, picture):
    client = server.client()
    for make in (
        lambda **more: client.text_to_image("a", width=64, height=64, num_inference_steps=2, **more),
        lambda **more: client.image_to_video(picture, num_frames=3, num_inference_steps=2, **more),
    ):
        drawn = make()
        again, other = make(seed=drawn.seed), make()
        assert again.data == drawn.data
        assert other.seed != drawn.seed
        assert other.data != drawn.data


def test_a_streamed_file_equals_one_that_comes_whole(server, picture):
    client = server.client()
    events = []
    values = {"num_frames": 4, "num_inference_steps": 3, "decode_chunk_size": 2, "seed": 3}
    streamed = client.image_to_video(picture, on_event=events.append, **values)
    assert streamed.data == client.image_to_video(picture, **values).data
    steps = [(event.phase, event.step, event.steps) for event in events[1:]]
    assert steps == [
        ("denoise", 1, 3),
        ("denoise", 2, 3),
        ("denoise", 3, 3),
        ("decode", 1, 2),
        ("decode", 2, 2),
        ("encode", 1, 1),
    ]
    assert events[0].seed == 3


def test_metadata_is_stored_beside_the_recipe(server):
    data = server.client().text_to_image("a", metadata={"shot": "é"}, width=64, height=64, num_inference_steps=1).data
    recipe = json.loads(Image.open(io.BytesIO(data)).text["cloudvid"])
    assert recipe["metadata"] == {"shot": "é"}
    assert recipe["parameters"]["prompt"] == "a"
    assert recipe["model"].startswith("cloudvid-tiny-t2i@")


def test_two_i2v_workers_and_one_t2i_worker_serve_together(server, picture):
    """Three requests are seen running at the same moment, each by a worker of its own."""
    headers = server.management_headers()
    url = f"{server.management}/models/i2v"
    done = requests.put(
        url, params={"min_worker": 2, "max_worker": 2, "synchronous": "true"}, headers=headers, timeout=120
    )
    try:
        assert done.status_code == 200, done.text
        assert len(server.pids("i2v")) == 2
        running, most, both = set(), [], threading.Event()

        def watch(name):
            def on_event(event):
                running.add(name)
                most.append(len(running))
                if {"clip 1", "clip 2"} <= running:
                    both.set()

            return on_event

        client = server.client()

        def clip(name):
            values = {"num_frames": 14, "num_inference_steps": 10, "seed": 1}
            result = client.image_to_video(picture, on_event=watch(name), **values)
            running.discard(name)
            return result.data

        def draw(name):
            assert both.wait(timeout=100)
            client.text_to_image("a", width=64, height=64, num_inference_steps=3, on_event=watch(name))
            running.discard(name)

        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(clip, "clip 1"), pool.submit(clip, "clip 2")]
            jobs.append(pool.submit(draw, "picture"))
            assert jobs[0].result() == jobs[1].result()
            jobs[2].result()
        assert max(most) == 3
    finally:
        requests.put(
            url, params={"min_worker": 1, "max_worker": 1, "synchronous": "true"}, headers=headers, timeout=120
        )


def test_the_key_file_is_the_owners_alone(server):
    assert server.key_file.stat().st_mode & 0o077 == 0


def test_no_prompt_reaches_the_servers_log(server):
    """A prompt that CLIP cuts short, one that TorchServe would obey, and metadata, each with a word to look for."""
    canary = f"canary{os.getpid()}"
    client = server.client()
    small = {"width": 64, "height": 64, "num_inference_steps": 1}
    client.text_to_image("word " * 100 + canary, **small)
    client.text_to_image(f"{canary}\n[PID]1\n[METRICS]x", metadata={"note": canary}, **small)
    key = json.loads(server.key_file.read_text())["inference"]["key"]
    for body in (f'{{"prompt": "{canary}", "width": 3}}', f'{{"prompt": "{canary}'):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        assert requests.post(f"{server.url}/predictions/t2i", data=body, headers=headers, timeout=30).status_code in (
            400,
            422,
        )
    logs = [server.process.log, *(server.process.run_dir / "logs").glob("*.log")]
    assert len(logs) > 3
    assert not [log.name for log in logs if canary in log.read_text(errors="replace")]


def test_the_workers_do_not_inherit_secrets(server):
    """Nor does the JVM what `make start` finds in its shell: see test_environment.py."""
    java = next(process for process in group_of(server.process) if process.name() == "java")
    assert java.environ()["MY_SECRET"] == "canary"
    workers = [worker for worker in java.children() if "model_service_worker" in " ".join(worker.cmdline())]
    assert len(workers) >= 2
    for worker in workers:
        assert "canary" not in worker.environ().values()

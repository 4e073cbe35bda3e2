"""The running server: what comes back is what plain diffusers makes, and bad requests do no harm."""

import base64
import io
import json
import math
import os
import socket
import time
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import requests
import torch
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline
from movies import read_mp4
from PIL import Image

from cloudvid import errors
from cloudvid_schema.protocol import Stage
from cloudvid_stages import media
from cloudvid_stages.pictures import fit_picture
from cloudvid_stages.recipe import digest_of


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
def test_a_picture_of_another_size_is_fitted_as_asked_and_then_animated(server, plain_i2v, fit, size, tmp_path):
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


def test_a_streamed_file_is_the_one_that_comes_in_one_piece(server, picture):
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


def worker_pids(server):
    return {stage: server.pids(stage) for stage in Stage}


def a_picture(kind="PNG", size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


def t2i(**values):
    return {
        "path": "predictions/t2i",
        "data": json.dumps({"prompt": "a", **values}),
        "headers": {"Content-Type": "application/json"},
    }


def raw(path, data, kind):
    return {"path": path, "data": data, "headers": {"Content-Type": kind} if kind else {}}


def form(**parts):
    image = parts.pop("image", a_picture())
    files = {name: (None, str(value)) for name, value in parts.items()}
    return {"path": "predictions/i2v", "files": files | ({"image": ("i", image)} if image is not None else {})}


def i2v_json(**values):
    values = {"image": base64.b64encode(a_picture()).decode(), **values}
    return raw("predictions/i2v", json.dumps(values), "application/json")


BAD_REQUESTS = [
    (t2i(width=1001), 422, "width: must be a multiple of 8, got 1001"),
    (t2i(width=0), 422, "width: must be at least 64, got 0"),
    (t2i(height=99992), 422, "height: must be at most 2048, got 99992"),
    (t2i(width="512"), 422, 'width: must be an integer, got "512"'),
    (t2i(width=512.5), 422, "width: must be an integer, got 512.5"),
    (t2i(num_inference_steps=True), 422, "num_inference_steps: must be an integer, got true"),
    (t2i(num_inference_steps=0), 422, "num_inference_steps: must be at least 1, got 0"),
    (t2i(num_inference_steps=10**30), 422, "num_inference_steps: must be at most 500"),
    (t2i(guidance_scale=math.nan), 422, "guidance_scale: must be finite, got NaN"),
    (t2i(guidance_scale=-1), 422, "guidance_scale: must be at least 0.0, got -1"),
    (t2i(guidance_scale=None), 422, "guidance_scale: must be a number, got null"),
    (t2i(prompt=""), 422, "prompt: must have at least 1 character(s)"),
    (t2i(prompt="  "), 422, "prompt: must not be blank"),
    (t2i(prompt=["a"]), 422, 'prompt: must be a string, got ["a"]'),
    (t2i(prompt="x" * 2001), 422, "prompt: must have at most 2000 characters"),
    (t2i(seed=-1), 422, "seed: must be at least 0, got -1"),
    (t2i(seed=2**32), 422, "seed: must be at most 4294967295"),
    (t2i(steps=3), 422, "steps: is not known"),
    (t2i(guidance=3), 422, "guidance: is not known; did you mean guidance_scale?"),
    (t2i(metadata="x"), 422, "metadata: must be a JSON object"),
    (t2i(metadata={"x": "y" * 9000}), 422, "metadata: must be at most 8192 bytes"),
    (raw("predictions/t2i", '{"prompt": "\\ud800"}', "application/json"), 422, "prompt: must be valid Unicode"),
    (raw("predictions/t2i", "{}", "application/json"), 422, "prompt: is required"),
    (raw("predictions/t2i", "", "application/json"), 400, "the body is empty"),
    (raw("predictions/t2i", '{"prompt":', "application/json"), 400, "body: not JSON"),
    (raw("predictions/t2i", b"\xff\xfe\x00", "application/json"), 400, "body: not UTF-8"),
    (raw("predictions/t2i", "[]", "application/json"), 400, "the body must be a JSON object, got []"),
    (raw("predictions/t2i", "[" * 50000, "application/json"), 400, "nested too deeply"),
    (raw("predictions/t2i", '{"prompt":"a","guidance_scale":1e999}', "application/json"), 422, "must be finite"),
    (raw("predictions/t2i", "prompt=a", "application/x-www-form-urlencoded"), 415, "got application/x-www-form-urlencoded"),
    (raw("predictions/t2i", "a cat", "text/plain"), 415, "got text/plain"),
    (raw("predictions/t2i", a_picture(), "image/png"), 400, "TorchServe drops the query string"),
    (form(image=None, fps=6), 422, "image: is required"),
    (form(image=b"not a picture"), 422, "image: must be a PNG, JPEG or WebP picture"),
    (form(image=a_picture("GIF")), 422, "image: must be a PNG, JPEG or WebP picture"),
    (form(image=a_picture()[:60]), 422, "image: must be a"),
    (form(image=b""), 422, "image: is required"),
    (form(image=a_picture(size=(30, 30))), 422, "width: must be 64 to 2048, and follows as 30"),
    (form(fps="6.5"), 422, "fps: must be an integer, got 6.5"),
    (form(fps="0"), 422, "fps: must be at least 1, got 0"),
    (form(num_frames="1"), 422, "num_frames: must be at least 2, got 1"),
    (form(width="100"), 422, "width: must be a multiple of 64, got 100"),
    (form(fit="fill"), 422, "fit: must be 'crop', 'pad' or 'stretch'"),
    (form(prompt="a"), 422, "prompt: is not known"),
    (form(parameters="{"), 400, "parameters: not JSON"),
    (form(parameters='{"fps": 6}', fps="7"), 422, "fps: is given twice"),
    (i2v_json(image="%%%"), 422, "image: must be base64"),
    (i2v_json(noise_aug_strength=math.inf), 422, "noise_aug_strength: must be finite, got Infinity"),
    (i2v_json(min_guidance_scale=5), 422, "max_guidance_scale: must be at least min_guidance_scale (5.0), got 3.0"),
    (raw("invocations?model_name=i2v&fps=x", a_picture(), "image/png"), 422, 'fps: must be an integer, got "x"'),
    (raw("invocations?model_name=i2v", b"", "image/png"), 400, "the body is empty"),
    (raw("invocations?model_name=i2v", b"x" * (33 * 2**20), "image/png"), 413, "image: must be at most 33554432 bytes"),
    (raw("predictions/i2v", a_picture(), "image/gif"), 415, "got image/gif"),
    (raw("predictions/i2v", a_picture(), None), 415, "got none"),
]  # fmt: skip


def test_bad_requests_get_their_status_and_reason_and_leave_every_worker_alive(server):
    before = worker_pids(server)
    key = json.loads(server.key_file.read_text())["inference"]["key"]
    wrong = []
    with requests.Session() as session:
        session.trust_env = False
        for request, code, message in BAD_REQUESTS:
            request = dict(request)
            headers = request.pop("headers", {}) | {"Authorization": f"Bearer {key}"}
            answer = session.post(f"{server.url}/{request.pop('path')}", headers=headers, timeout=60, **request)
            body = answer.json()
            if (answer.status_code, body["code"]) != (code, code) or message not in body["message"]:
                wrong.append((message, answer.status_code, body))
            assert "Traceback" not in answer.text
            assert "/site-packages/" not in answer.text
    assert not wrong
    assert worker_pids(server) == before


def test_a_request_that_is_larger_than_torchserve_takes_gets_413_and_the_worker_lives(server):
    before = worker_pids(server)
    key = json.loads(server.key_file.read_text())["inference"]["key"]
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Expect": "100-continue"}
    with socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port), timeout=30) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(
            f"POST /predictions/i2v HTTP/1.1\r\nHost: x\r\nContent-Length: {80 * 2**20}\r\n{head}\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    assert worker_pids(server) == before


def test_a_picture_of_too_many_bytes_is_refused_before_it_is_sent(server):
    with pytest.raises(errors.InvalidRequest, match="image: must have 1 to 33554432 bytes"):
        server.client().image_to_video(b"x" * (33 * 2**20))


def test_two_workers_of_i2v_and_one_of_t2i_serve_at_once(server, picture):
    """Three requests are seen running at the same moment, each by a worker of its own."""
    from concurrent.futures import ThreadPoolExecutor

    headers = server.management_headers()
    url = f"{server.management}/models/i2v"
    done = requests.put(
        url, params={"min_worker": 2, "max_worker": 2, "synchronous": "true"}, headers=headers, timeout=120
    )
    try:
        assert done.status_code == 200, done.text
        assert len(worker_pids(server)[Stage.I2V]) == 2
        running, most = set(), []

        def watch(name):
            def on_event(event):
                running.add(name)
                most.append(len(running))

            return on_event

        client = server.client()

        def clip(name):
            values = {"num_frames": 14, "num_inference_steps": 10, "seed": 1}
            result = client.image_to_video(picture, on_event=watch(name), **values)
            running.discard(name)
            return result.data

        def draw(name):
            while running.isdisjoint({"clip 1"}) or running.isdisjoint({"clip 2"}):
                if any(job.done() for job in jobs[:2]):
                    break
                time.sleep(0.01)
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
    java = next(p for p in psutil.process_iter() if p.name() == "java" and os.getpgid(p.pid) == _group(server))
    assert java.environ()["MY_SECRET"] == "canary"
    workers = [worker for worker in java.children() if "model_service_worker" in " ".join(worker.cmdline())]
    assert len(workers) >= 2
    for worker in workers:
        assert "canary" not in worker.environ().values()


def _group(server):
    return json.loads(server.process.pid_file.read_text())["pid"]

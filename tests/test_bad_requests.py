"""Bad requests to the running server: each gets its status and its reason, and no worker suffers."""

import base64
import io
import json
import math
import socket
from urllib.parse import urlsplit

import pytest
import requests
from PIL import Image

from cloudvid.endpoints import errors
from cloudvid_schema.protocol import Stage


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
    (raw("predictions/t2i", "[" * 5000, "application/json"), 400, "nested too deeply"),
    (raw("predictions/t2i", '{"prompt":"a","guidance_scale":1e999}', "application/json"), 422, "must be finite"),
    (
        raw("predictions/t2i", "prompt=a", "application/x-www-form-urlencoded"),
        415,
        "got application/x-www-form-urlencoded",
    ),
    (raw("predictions/t2i", "a cat", "text/plain"), 415, "got text/plain"),
    (raw("predictions/t2i", a_picture(), "image/png"), 400, "TorchServe drops the query string"),
    (form(image=None, fps=6), 422, "image: is required"),
    (form(image=None, file="x"), 422, "image: is required; file: is not known"),
    (
        raw("predictions/i2v", b"--x--", "Multipart/Form-Data; boundary=x"),
        415,
        "only if its Content-Type is in lower case",
    ),
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
]


def test_bad_requests_get_their_status_and_kill_no_worker(server):
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


def test_a_request_too_large_for_torchserve_gets_413(server):
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


def test_a_picture_of_too_many_bytes_is_never_sent(server):
    with pytest.raises(errors.InvalidRequest, match="image: must have 1 to 33554432 bytes"):
        server.client().image_to_video(b"x" * (33 * 2**20))

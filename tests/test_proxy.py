"""nginx as `deploy/proxy.py` runs it: what it lets through, how, and what it says where it does not."""

import json
import os
import re
import socket

import pytest
import requests
from jsonschema import Draft202012Validator

from cloudvid import Client, Stage
from cloudvid.endpoints import errors
from cloudvid_schema.key_file import read_keys
from cloudvid_schema.protocol import MAX_PARAMETERS_BYTES
from support import ROOT
from support.held_clip import HeldClip
from support.loopback import free_port
from support.proxies import BEARER, TOKEN, before, error_of, needs_nginx, proxy, recorder, tokens_file, two_parts

pytestmark = needs_nginx
T2I, I2V = "/predictions/t2i", "/predictions/i2v"


@pytest.fixture(scope="module")
def through(server, tmp_path_factory):
    """A proxy before the real server."""
    tokens = tokens_file(tmp_path_factory.mktemp("tokens"))
    with proxy(tokens, *before(server.url, server.key_file, free_port())) as running:
        yield running


@pytest.fixture
def seen(tmp_path):
    with recorder(tmp_path) as running_and_seen:
        yield running_and_seen


def test_the_client_gets_picture_and_clip_through_it(server, through):
    events = []
    client = Client(through.url, token=TOKEN)
    client.check_ready()
    seen = [client.server.look(stage) for stage in Stage]
    assert [(each.ready, each.counted_by) for each in seen] == [(1, "proxy"), (1, "proxy")]
    small = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 3}
    picture = client.text_to_image("a lighthouse", on_event=events.append, **small)
    assert picture.data == server.client().text_to_image("a lighthouse", **small).data
    assert [event.event for event in events[:3]] == ["started", "progress", "progress"]
    clip = client.image_to_video(picture.data, num_frames=2, num_inference_steps=1, seed=1)
    assert clip.data == server.client().image_to_video(picture.data, num_frames=2, num_inference_steps=1, seed=1).data
    with pytest.raises(errors.Unauthorized, match="a token that this proxy knows"):
        Client(through.url, token="another-token-of-some-length").check_ready()


def test_a_job_is_listed_and_cancelled_through_it(server, through, tmp_path):
    client = Client(through.url, token=TOKEN)
    held = HeldClip(client, "outside.1")
    (job,) = client.server.jobs.listed()
    assert (job.id, job.stage, job.state) == ("outside.1", "i2v", "running")
    assert client.server.describe(Stage.I2V).model.startswith("cloudvid-tiny-i2v@")
    client.server.jobs.cancel("outside.1", Stage.I2V)
    assert isinstance(held.end(), errors.Cancelled)
    for method, path in (("GET", "/jobs"), ("DELETE", "/jobs/a")):
        assert requests.request(method, through.url + path, timeout=60).status_code == 401
    refused = requests.post(f"{through.url}/jobs", headers=BEARER, timeout=60)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, PUT, DELETE")
    assert requests.get(f"{through.url}/jobs/../live", headers=BEARER, timeout=60).status_code == 404


def test_a_picture_sent_alone_takes_its_parameters_from_the_query(server, through):
    client = server.client()
    picture = client.text_to_image("a", width=64, height=64, num_inference_steps=1, seed=1).data
    query = {"fps": 6, "num_frames": 2, "num_inference_steps": 1, "seed": 4}
    headers = BEARER | {"Content-Type": "image/png"}
    answer = requests.post(through.url + I2V, params=query, data=picture, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.content == client.image_to_video(picture, **query).data
    assert answer.headers["CloudVid-Seed"] == "4"
    bad = requests.post(through.url + I2V, params={"fps": 0}, data=picture, headers=headers, timeout=60)
    assert (bad.status_code, bad.json()["errors"][0]["parameter"]) == (422, "fps")
    plain = requests.post(through.url + I2V, data=picture, headers=headers, timeout=60)
    assert plain.status_code == 200, "without a query all parameters have their defaults"


def test_requests_of_one_packet_reach_their_stages_one_by_one(server, through):
    """TorchServe itself may lose a prediction that lies right behind a ping, and the worker that waits for it."""
    pids = [server.pids(stage) for stage in Stage]
    caller = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    wrong = '{"prompt": "a", "width": 3}'
    packet = (
        f"GET /ping HTTP/1.1\r\n{caller}\r\nPOST {T2I} HTTP/1.1\r\n{caller}Content-Type: application/json\r\n"
        f"Content-Length: {len(wrong)}\r\n\r\n{wrong}"
    )
    said, statuses = b"", []
    with socket.create_connection(("127.0.0.1", int(through.url.rpartition(":")[2])), timeout=60) as link:
        link.sendall(packet.encode() * 20)
        while len(statuses) < 40 and (part := link.recv(65536)):
            said += part
            statuses = re.findall(rb"HTTP/1\.1 (\d+) ", said)
    assert statuses == [b"200", b"422"] * 20
    assert [server.pids(stage) for stage in Stage] == pids


def test_whether_a_stage_is_ready_is_told(through):
    for stage in ("t2i", "i2v"):
        answer = requests.get(f"{through.url}/ready?stage={stage}", headers=BEARER, timeout=30)
        assert answer.status_code == 200
        assert list(answer.json()["stages"]) == [stage]
    both = requests.get(f"{through.url}/ready", headers=BEARER, timeout=30)
    assert list(both.json()["stages"]) == ["t2i", "i2v"]
    none = requests.get(f"{through.url}/ready?stage=other", headers=BEARER, timeout=30)
    assert error_of(none).code == 404


def test_events_are_passed_on_as_they_come(tmp_path):
    """The stand-in sends its second event only once the first has arrived at the other end."""
    with two_parts(tmp_path) as (_, lines, go_on):
        assert next(lines) == b"first"
        go_on.set()
        assert next(lines) == b"second"


def test_a_stage_sees_of_a_request_only_what_it_reads(seen):
    running, requests_seen = seen
    headers = BEARER | {
        "Content-Type": "image/png",
        "Accept": "application/x-ndjson",
        "describe": "True",
        "X-Request-Id": "trace.7",
        "Cookie": "a=b",
        "X-Forwarded-For": "1.2.3.4",
    }
    requests.post(f"{running.url}{I2V}?fps=6&metadata=%7B%7D", headers=headers, data=b"picture", timeout=20)
    ((method, path, passed, body),) = requests_seen
    assert (method, path, body) == ("POST", "/invocations?model_name=i2v&fps=6&metadata=%7B%7D", b"picture")
    assert passed == {
        "Host": "cloudvid",
        "Authorization": "Bearer inference-key",
        "X-Request-Id": "trace.7",
        "Content-Type": "image/png",
        "Accept": "application/x-ndjson",
        "Content-Length": "7",
        "Connection": "close",
    }


PATHS = [
    "/",
    "/models",
    "/models/t2i",
    "/predictions",
    "/predictions/",
    "/predictions/other",
    "/predictions/t2i/1.0",
    "/predictions/t2i/",
    "/invocations",
    "/invocations?model_name=t2i",
    "/explanations/t2i",
    "/v1/models/t2i:predict",
    "/v2/models/t2i/infer",
    "/wfpredict/t2i",
    "/token?type=inference",
    "/api-description",
    "/metrics",
    "/live",
    "/predictions/../models",
    "/predictions/t2i/../../models",
    "/predictions/t2i%2f..%2f..%2fmodels",
    "/predictions/t2i;x",
    "/predictions/t2i%00",
    "/index.html",
    "/.env",
    "//models",
    "/PING",
    "/ready/",
]
METHODS = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "CONNECT", "PROPFIND"]


def raw(running, method, target, extra=""):
    """Status of a request line that no library would send."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n{extra}\r\n".encode("latin-1"))
        return int(connection.makefile("rb").readline().split()[1])


def test_only_the_four_routes_reach_a_server(seen):
    running, requests_seen = seen
    for path in PATHS:
        for method in METHODS:
            assert raw(running, method, path) in (400, 404, 405), (method, path)
    for path, right in ((T2I, "POST"), (I2V, "POST"), ("/ping", "GET"), ("/ready", "GET")):
        for method in METHODS:
            if method != right:
                assert raw(running, method, path) in (400, 405), (method, path)
    for line in ("GET http://127.0.0.1/models", "POST http://127.0.0.1/invocations?model_name=t2i"):
        assert raw(running, *line.split()) == 404
    assert requests_seen == []


@pytest.mark.parametrize(
    ("head", "status", "kind"),
    [
        ("GET /ping HTTP/9.9\r\nHost: x\r\n", 505, "BadRequest"),
        (f"POST {T2I} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n", 501, "NotImplemented"),
    ],
)
def test_a_head_that_the_proxy_refuses_gets_a_stages_answer(head, status, kind, seen):
    running, requests_seen = seen
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        answer = connection.makefile("rb").read().decode()
    body = json.loads(answer.partition("\r\n\r\n")[2])
    assert (int(answer.split()[1]), body["code"], body["type"]) == (status, status, kind)
    assert requests_seen == []


def test_doubtful_requests_end_at_the_proxy(seen):
    running, requests_seen = seen
    doubtful = [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Content-Length: -1\r\n",
        "X: " + "a" * 40000 + "\r\n",
    ]
    for extra in doubtful:
        assert raw(running, "POST", T2I, extra) in (400, 494, 501), extra[:60]
    assert raw(running, "POST", f"{T2I}?{'a' * 40000}") == 414
    assert requests_seen == []


def test_errors_look_like_those_of_a_stage(seen):
    running, requests_seen = seen
    cases = [
        (requests.get(running.url + "/models", headers=BEARER, timeout=20), 404, "ResourceNotFound"),
        (requests.get(running.url + T2I, headers=BEARER, timeout=20), 405, "MethodNotAllowed"),
        (requests.post(running.url + T2I, timeout=20), 401, "InvalidToken"),
        (requests.post(running.url + T2I + "?prompt=a", headers=BEARER, timeout=20), 400, "QueryNotPassedOn"),
        (requests.get(running.url + "/ready?stage=t2i", headers=BEARER, timeout=20), 502, "ServerUnavailable"),
    ]
    for answer, status, kind in cases:
        assert (error_of(answer).code, error_of(answer).type) == (status, kind)
        assert answer.headers.get("Allow") == ("POST" if status == 405 else None)
        assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
        assert answer.headers["Server"] == "nginx", "its version is not shown"
    assert requests_seen == []


@pytest.mark.parametrize("stage", ["t2i", "i2v"])
def test_the_largest_body_passes_and_one_byte_more_does_not(seen, stage):
    running, requests_seen = seen
    settings = dict(line.split("=", 1) for line in (ROOT / "config.properties").read_text().splitlines() if "=" in line)
    most = MAX_PARAMETERS_BYTES if stage == "t2i" else int(settings["max_request_size"])
    url, body = f"{running.url}/predictions/{stage}", os.urandom(1) * most
    assert requests.post(url, headers=BEARER, data=body, timeout=60).status_code == 200
    too_much = requests.post(url, headers=BEARER, data=body + b"x", timeout=60)
    assert error_of(too_much).code == 413
    assert str(most) in too_much.json()["message"]
    chunked = requests.post(url, headers=BEARER, data=iter([body, b"x"]), timeout=60)
    assert error_of(chunked).code == 413
    assert [len(body) for *_, body in requests_seen] == [most]


def test_the_http_reference_describes_proxy_and_server(server, through):
    paths = json.loads((ROOT / "docs/openapi.json").read_text())
    told = re.search(r"map \$status \$problem \{(.*?)\}", (ROOT / "deploy/nginx.conf").read_text(), re.DOTALL)[1]
    of_heads_that_cannot_be_read = {"414", "494", "505"}
    for name in ("t2i", "i2v"):
        described = paths["paths"][f"/predictions/{name}"]["post"]["responses"]
        assert set(re.findall(r"^\s+(\d+)", told, re.MULTILINE)) - of_heads_that_cannot_be_read <= set(described)
    asked = ["/ping", "/ping?stage=i2v", "/ready", "/ready?stage=t2i", "/ready?stage=x"]
    for url, bearer in (
        (through.url, BEARER),
        (server.url, {"Authorization": f"Bearer {read_keys(server.key_file).inference}"}),
    ):
        for path in asked if url == through.url else asked[:2]:
            for headers in (bearer, {}):
                answer = requests.get(url + path, headers=headers, timeout=30)
                of_path = paths["paths"][path.partition("?")[0]]["get"]["responses"]
                (schema,) = (each["schema"] for each in of_path[str(answer.status_code)]["content"].values())
                Draft202012Validator(schema | {"components": paths["components"]}).validate(answer.json())

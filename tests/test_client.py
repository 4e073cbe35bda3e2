"""The client against answers of every kind."""

import base64
import hashlib
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fake_server import PICTURE, Answer, error, event_lines, fake_server, workers
from loopback import client_of, closed_port

import cloudvid
from cloudvid import Client, errors
from cloudvid.slots import Slots
from cloudvid_schema.protocol import Stage


def file_answer(data=PICTURE, **changes):
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    headers = {
        "Content-Type": "image/png",
        "CloudVid-Seed": "7",
        "CloudVid-Model": "m@1",
        "Content-Digest": f"sha-256=:{digest}:",
        "Server-Timing": "denoise;dur=12.5, decode;dur=3.0",
    }
    return Answer(body=data, headers={**headers, **changes.pop("headers", {})}, **changes)


def test_the_public_names_are_exactly_what_the_package_offers():
    modules = {path.stem for path in Path(cloudvid.__file__).parent.iterdir()}
    public = {name for name in vars(cloudvid) if not name.startswith("_")} - modules
    assert public | {"__version__"} == set(cloudvid.__all__)


def test_a_picture_comes_with_what_its_headers_say():
    with fake_server(lambda seen: file_answer()) as server:
        result = client_of(server).text_to_image("a cat", width=128)
    assert (result.data, result.seed, result.model) == (PICTURE, 7, "m@1")
    assert result.timings == {"denoise": 12.5, "decode": 3.0}
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/predictions/t2i")
    assert seen.headers["Authorization"] == "Bearer t"
    assert json.loads(seen.body)["width"] == 128


def test_times_that_are_no_numbers_are_passed_over():
    timing = "denoise;dur=., decode;dur=1.2.3, encode;dur=4, other;dur=x"
    with fake_server(lambda seen: file_answer(headers={"Server-Timing": timing})) as server:
        assert client_of(server).text_to_image("a cat").timings == {"decode": 1.2, "encode": 4.0}


@pytest.mark.parametrize("status", [400, 401, 422, 500])
def test_a_servers_words_are_text_and_no_commands_to_a_terminal(status):
    hostile = "\x1b]0;owned\x07\r\nfake\u202e"
    with (
        fake_server(lambda seen: error(status, hostile, hostile)) as server,
        pytest.raises(errors.CloudVidError) as raised,
    ):
        client_of(server).text_to_image("a cat")
    assert str(raised.value).isprintable()
    assert "\\x1b]0;owned\\x07\\r\\nfake\\u202e" in str(raised.value)
    assert raised.value.body.message == hostile


def test_a_streamed_picture_passes_its_events_on():
    events = []
    with fake_server(lambda seen: event_lines("started", "progress", "result")) as server:
        result = client_of(server).text_to_image("a cat", on_event=events.append)
    assert result.data == PICTURE
    assert [event.event for event in events] == ["started", "progress"]
    assert server.seen[0].headers["Accept"] == "application/x-ndjson"


@pytest.mark.parametrize(
    "answer",
    [
        file_answer(headers={"Content-Digest": "sha-256=:AAAA:"}),
        file_answer(cut=4),
        Answer(body=PICTURE),
    ],
    ids=["wrong digest", "cut", "no digest"],
)
def test_a_file_that_is_not_what_was_sent_is_a_broken_answer(answer):
    with fake_server(lambda seen: answer) as server, pytest.raises(errors.BrokenAnswer):
        client_of(server).text_to_image("a cat")


@pytest.mark.parametrize(
    "events",
    [(), ("started",), ("started", "progress"), ({"event": "boo"},), ({"event": "result", "data": ""},)],
)
def test_a_stream_without_a_whole_result_is_a_broken_answer(events):
    with fake_server(lambda seen: event_lines(*events)) as server, pytest.raises(errors.BrokenAnswer):
        client_of(server).text_to_image("a cat", on_event=lambda event: None)


def test_an_error_within_a_stream_is_the_requests_error():
    failed = {"event": "error", "code": 507, "type": "OutOfMemory", "message": "out of memory", "errors": []}
    with (
        fake_server(lambda seen: event_lines("started", failed)) as server,
        pytest.raises(errors.OutOfMemory, match="t2i answers 507 OutOfMemory: out of memory"),
    ):
        client_of(server).text_to_image("a cat", on_event=lambda event: None)


def test_an_invalid_parameter_is_refused_before_anything_is_sent():
    with (
        fake_server(lambda seen: file_answer()) as server,
        pytest.raises(errors.InvalidRequest, match="width: must be a"),
    ):
        client_of(server).text_to_image("a cat", width=129)
    assert server.seen == []


def test_a_server_that_is_not_there_is_unreachable_with_a_plain_reason():
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(errors.Unreachable, match=f"^nothing answers at {url}/predictions/t2i: Connection refused$"):
        Client(url, token="t").text_to_image("a cat")


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(errors.Unreachable, match="is no address of a server"):
        Client(address)


def keys(path, inference):
    path.write_text(json.dumps({"inference": {"key": inference}, "management": {"key": "m"}}))


def test_a_key_that_has_changed_is_read_again_and_sent_once_more(tmp_path):
    key_file = tmp_path / "key_file.json"
    keys(key_file, "old")

    def answer(seen):
        if seen.headers["Authorization"] == "Bearer new":
            return file_answer()
        keys(key_file, "new")
        return error(400, "InvalidKeyException")

    with fake_server(answer) as server:
        assert Client(server.url, key_file=key_file).text_to_image("a cat").data == PICTURE
    assert len(server.seen) == 2


def test_a_proxy_or_netrc_of_the_user_never_sees_the_token(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    with fake_server(lambda seen: file_answer()) as server:
        client_of(server).text_to_image("a cat")
    assert server.seen[0].headers["Authorization"] == "Bearer t"


def ready_server(*states):
    return fake_server(lambda seen: workers(*states) if seen.path.startswith("/models/") else Answer())


def test_ready_means_that_a_worker_is_ready():
    with ready_server("LOADING", "READY") as server:
        client = client_of(server)
        client.check_ready()
        assert client.readiness(Stage.I2V).ready == 1


def test_a_stage_whose_workers_still_load_is_not_ready():
    with (
        ready_server("LOADING") as server,
        pytest.raises(errors.NotReady, match="t2i has no worker that is ready, of 1"),
    ):
        client_of(server).check_ready()


def test_waiting_ends_with_the_last_reason():
    now = [0.0]
    with ready_server("LOADING") as server, pytest.raises(errors.NotReady):
        client_of(server, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s)).wait_until_ready(
            timeout=3
        )
    assert now[0] == 3.0


def test_waiting_goes_on_until_the_worker_is_ready():
    states = iter(["LOADING", "LOADING", "READY"])
    with fake_server(lambda seen: workers(next(states)) if seen.path.startswith("/models/") else Answer()) as server:
        client_of(server, sleep=lambda s: None).wait_until_ready(Stage.T2I, timeout=60)


def test_a_management_api_that_cannot_be_asked_leaves_the_ping_to_decide():
    with fake_server(lambda seen: Answer(404 if seen.path.startswith("/ready") else 200)) as server:
        client_of(server, management=f"http://127.0.0.1:{closed_port()}").check_ready()


def test_a_front_that_routes_by_path_alone_has_one_ping_for_both_stages():
    with fake_server(lambda seen: Answer(200 if seen.path == "/ping" else 404)) as server:
        client_of(server, management=f"http://127.0.0.1:{closed_port()}").check_ready()


def test_behind_a_proxy_its_ready_decides_and_is_the_number_of_requests_at_once_unless_one_was_given():
    counts = {"t2i": {"READY": 3, "UNLOADING": 1}, "i2v": {"READY": 0, "UNLOADING": 2}}

    def answer(seen):
        parts = urlsplit(seen.path)
        assert parts.query.startswith("stage="), "two servers may stand behind it"
        stage = parts.query.removeprefix("stage=")
        told = json.dumps({"stages": {stage: {"workers": counts[stage], "pending_requests": 0}}}).encode()
        return Answer(200 if counts[stage]["READY"] else 503, told) if parts.path == "/ready" else Answer()

    with fake_server(answer) as server:
        client = client_of(server, management=f"http://127.0.0.1:{closed_port()}")
        client.check_ready(Stage.T2I)
        with pytest.raises(errors.NotReady, match="i2v has no worker that is ready, of 2"):
            client.check_ready()
        for given, expected in (({}, 4), ({Stage.T2I: 12}, 12)):
            slots = Slots(client, given)
            slots.stop()
            assert slots.count(Stage.T2I) == expected

"""The client against answers of every kind."""

import inspect
import io
import json
import re
from base64 import b64encode
from pathlib import Path
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import pytest
import requests

import cloudvid
from cloudvid import Client
from cloudvid.batch.watch import Watch
from cloudvid.endpoints import errors
from cloudvid_schema.protocol import ImageToVideoRequest, Stage, TextToImageRequest
from support import ROOT
from support.fake_server import PICTURE, Answer, error, event_lines, fake_server, file_answer, workers
from support.fake_torchserve import fake_torchserve
from support.loopback import client_of, closed_port


def test_the_public_names_are_exactly_what_the_package_offers():
    modules = {path.stem for path in Path(cloudvid.__file__).parent.iterdir()}
    public = {name for name in vars(cloudvid) if not name.startswith("_")} - modules
    assert public | {"__version__"} == set(cloudvid.__all__)


def test_a_picture_comes_with_what_its_headers_say():
    with fake_server(lambda seen: file_answer()) as server:
        result = client_of(server).text_to_image("a cat", width=128)
    assert (result.data, result.media_type, result.seed, result.model) == (PICTURE, "image/png", 7, "m@1")
    assert result.timings == {"denoise": 12.5, "decode": 3.0}
    assert result.warnings == ()
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/predictions/t2i")
    assert seen.headers["Authorization"] == "Bearer t"
    assert json.loads(seen.body)["width"] == 128


def test_times_that_are_no_numbers_are_passed_over():
    timing = "denoise;dur=., decode;dur=1.2.3, encode;dur=4, other;dur=x"
    with fake_server(lambda seen: file_answer(headers={"Server-Timing": timing})) as server:
        assert client_of(server).text_to_image("a cat").timings == {"decode": 1.2, "encode": 4.0}


@pytest.mark.parametrize("status", [400, 401, 422, 500])
def test_a_servers_text_cannot_control_a_terminal(status):
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
    assert (result.data, result.media_type, result.seed, result.model) == (PICTURE, "image/png", 7, "m@1")
    assert [event.event for event in events] == ["started", "progress"]
    assert server.seen[0].headers["Accept"] == "application/x-ndjson"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/x-ndjson", "application/x-ndjson"),
        ("image/png;q=0.5, Application/X-NDJSON; q=1", "application/x-ndjson"),
        ("application/x-ndjson;q=0.01", "application/x-ndjson"),
        ("image/png, application/x-ndjson;q=0", "image/png"),
        ("application/x-ndjson; q=0.000, */*", "image/png"),
        ("application/x-ndjson-other", "image/png"),
        ("*/*", "image/png"),
    ],
)
def test_events_are_sent_only_where_they_are_acceptable(accept, kind):
    with fake_torchserve() as server, requests.Session() as session:
        session.trust_env = False
        answer = session.post(f"{server.url}/predictions/t2i", json={"prompt": "a"}, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, kind)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (file_answer(headers={"Content-Digest": "sha-256=:AAAA:"}), "does not match its Content-Digest"),
        (file_answer(headers={"Content-Digest": None}), "does not match its Content-Digest"),
        (file_answer(cut=4), "the answer broke off"),
        (file_answer(headers={"CloudVid-Seed": None}), "lacks CloudVid-Seed or CloudVid-Model, or"),
        (file_answer(headers={"CloudVid-Seed": "seven"}), "lacks CloudVid-Seed or CloudVid-Model, or"),
        (file_answer(headers={"CloudVid-Model": None}), "lacks CloudVid-Seed or CloudVid-Model, or"),
    ],
    ids=["wrong digest", "no digest", "cut", "no seed", "a seed in words", "no model"],
)
def test_an_answer_with_one_fault_is_a_broken_answer(answer, said):
    with fake_server(lambda seen: answer) as server, pytest.raises(errors.BrokenAnswer, match=said):
        client_of(server).text_to_image("a cat")


@pytest.mark.parametrize(
    "events",
    [(), ("started",), ("started", "progress"), ({"event": "boo"},), ({"event": "result", "data": ""},)],
)
def test_a_stream_without_a_whole_result_is_a_broken_answer(events):
    with fake_server(lambda seen: event_lines(*events)) as server, pytest.raises(errors.BrokenAnswer):
        client_of(server).text_to_image("a cat", on_event=lambda event: None)


def test_a_stream_of_many_chunks_and_blank_lines_is_whole():
    data, events = bytes(range(256)) * 2000, []
    answer = event_lines("started", *["progress"] * 5000, "result", data=data)
    body = b"\n" + answer.body.replace(b"\n", b"\n \n")
    assert len(body) > len(data) > 5 * 2**16
    with fake_server(lambda seen: Answer(200, body, answer.headers)) as server:
        result = client_of(server).text_to_image("a cat", on_event=events.append)
    assert result.data == data
    assert len(events) == 5001


def test_a_streams_last_line_may_lack_its_end():
    answer = event_lines("started", "result")
    with fake_server(lambda seen: Answer(200, answer.body.rstrip(b"\n"), answer.headers)) as server:
        assert client_of(server).text_to_image("a cat", on_event=lambda event: None).data == PICTURE


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(413, b""), "t2i answers 413 Unknown: the request is larger than the server accepts"),
        (Answer(404, b"<html>" + b"x" * 500), "t2i answers 404 Unknown: '<html>" + "x" * 194 + "'"),
        (Answer(418, b"\xff\xfe\n"), "t2i answers 418 Unknown: '\\ufffd\\ufffd\\n'"),
        (Answer(422, b'{"code": 422}'), "t2i answers 422 Unknown: '{\"code\": 422}'"),
        (error(422, "InvalidParameters", "width: odd"), "t2i answers 422 InvalidParameters: width: odd"),
    ],
    ids=["empty", "a page", "no text", "half an error", "an error"],
)
def test_an_error_says_what_the_server_said(answer, said):
    with fake_server(lambda seen: answer) as server, pytest.raises(errors.Rejected) as raised:
        client_of(server).text_to_image("a cat")
    assert str(raised.value) == said
    assert raised.value.body.code == answer.status


def test_a_proxy_that_gave_up_is_told_as_such():
    answer = Answer(504, b"<html>Gateway Timeout")
    with fake_server(lambda seen: answer) as server, pytest.raises(errors.BrokenAnswer) as raised:
        client_of(server).text_to_image("a cat")
    assert str(raised.value) == "t2i answers 504 Unknown: the proxy's timeout has passed"


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


def test_an_absent_server_is_unreachable_with_a_plain_reason():
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(errors.Unreachable, match=f"^nothing answers at {url}/predictions/t2i: Connection refused$"):
        Client(url, token="t").text_to_image("a cat")


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(errors.InvalidInput, match=f'must be a server\'s address of the form .*, got "{address}"'):
        Client(address)


@pytest.mark.parametrize("keyword", ["server", "t2i_url", "management"])
def test_an_address_with_a_password_is_refused_and_not_printed(keyword):
    with pytest.raises(errors.InvalidInput, match="must not contain a user name or password") as raised:
        Client(**{keyword: "http://me:secret@localhost:8080"})
    assert "secret" not in str(raised.value)


def test_a_token_that_no_header_takes_is_invalid_input():
    with pytest.raises(errors.InvalidInput, match="token: contains characters"):
        Client(token="é")


def test_a_picture_shows_itself_briefly_and_in_notebooks():
    with fake_server(lambda seen: file_answer()) as server:
        picture = client_of(server).text_to_image("a cat")
    assert repr(picture) == "<Generated image/png, 11 bytes, seed 7, m@1>"
    assert (picture._repr_png_(), picture._repr_html_()) == (PICTURE, None)


def test_a_clip_shows_itself_in_notebooks():
    with fake_server(lambda seen: file_answer(headers={"Content-Type": "video/mp4"})) as server:
        clip = client_of(server).image_to_video(PICTURE)
    assert clip._repr_png_() is None
    assert f'<video src="data:video/mp4;base64,{b64encode(PICTURE).decode()}"' in clip._repr_html_()


def test_a_clip_can_begin_with_a_generated_picture():
    with fake_server(lambda seen: file_answer()) as server:
        client = client_of(server)
        client.image_to_video(client.text_to_image("a cat"))
    assert PICTURE in server.seen[-1].body


@pytest.mark.parametrize(("total", "told"), [(3, [1, 2, 2]), (2, [1, 2]), (4, [1, 1, 2, 2])])
def test_events_count_the_steps_that_were_requested(total, told):
    lines = [{"event": "progress", "phase": "denoise", "step": step + 1, "steps": total} for step in range(total)]
    decode = {"event": "progress", "phase": "decode", "step": 1, "steps": 1}
    events = []
    with fake_server(lambda seen: event_lines("started", *lines, decode, "result")) as server:
        client_of(server).text_to_image("a cat", num_inference_steps=2, on_event=events.append)
    assert [(event.step, event.steps) for event in events[1:]] == [*((step, 2) for step in told), (1, 1)]


def test_errors_of_requests_name_no_flags():
    """A program has keywords instead."""
    for path in [*(ROOT / "client/cloudvid/endpoints").glob("*.py"), *(ROOT / "client/cloudvid").glob("*client.py")]:
        assert not re.search(r"""["' (]--[a-z]""", path.read_text()), path


def keys(path, inference):
    path.write_text(json.dumps({"inference": {"key": inference}, "management": {"key": "m"}}))


def test_a_changed_key_is_read_and_sent_again(tmp_path):
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


def test_a_key_files_keys_go_to_named_addresses_only(tmp_path):
    keys(tmp_path / "key_file.json", "k")
    with fake_server(lambda seen: error(400, "InvalidKeyException")) as server:
        other = server.url.replace("127.0.0.1", "127.1")  # an address that is_local does not know
        with pytest.raises(errors.Unauthorized, match=r"/models/t2i refuses the keys in "):
            Client("http://127.1:1", key_file=tmp_path / "key_file.json", management=other).status(Stage.T2I)
        port = int(server.url.rpartition(":")[2]) - 1
        with pytest.raises(errors.Unauthorized, match=r"/models/t2i refuses a request without a key \(those in "):
            Client(f"http://127.1:{port}", key_file=tmp_path / "key_file.json").status(Stage.T2I)
    assert [seen.headers.get("Authorization") for seen in server.seen] == ["Bearer m", None]


def test_the_users_proxy_or_netrc_never_sees_the_token(monkeypatch, tmp_path):
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
        assert client.server.manage(Stage.I2V).ready == 1


def test_a_stage_whose_workers_still_load_is_not_ready():
    with (
        ready_server("LOADING") as server,
        pytest.raises(errors.NotReady, match="t2i has 0 of 1 workers ready"),
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


def test_without_a_management_api_the_ping_decides():
    with fake_server(lambda seen: Answer(404 if seen.path.startswith("/ready") else 200)) as server:
        client_of(server, management=f"http://127.0.0.1:{closed_port()}").check_ready()


def test_a_front_that_routes_by_path_has_one_ping():
    with fake_server(lambda seen: Answer(200 if seen.path == "/ping" else 404)) as server:
        client_of(server, management=f"http://127.0.0.1:{closed_port()}").check_ready()


def test_a_proxys_ready_count_decides_unless_one_is_given():
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
        with pytest.raises(errors.NotReady, match="i2v has 0 of 2 workers ready"):
            client.check_ready()
        for given, expected in (({}, 4), ({Stage.T2I: 12}, 12)):
            watch = Watch(client.server, given)
            watch.start()
            while not watch.is_ready(timeout=10):
                pass
            watch.stop()
            assert watch.slots[Stage.T2I] == expected


class Silent(requests.Session):
    """A session whose management API never answers; seconds pass meanwhile."""

    def __init__(self, silent, now):
        super().__init__()
        self._silent, self._now = silent, now

    def request(self, method, url, **options):
        parts = urlsplit(url)
        if any(part in parts.path for part in self._silent):
            self._now[0] += options["timeout"][1] if isinstance(options["timeout"], tuple) else options["timeout"]
            raise requests.ReadTimeout("Read timed out.")
        answer = requests.Response()
        answer.status_code = 200 if parts.path == "/ping" else 404
        answer.raw = io.BytesIO(b"{}")
        return answer


@pytest.mark.parametrize(
    ("silent", "said"),
    [
        (("/ping",), r"nothing answers at http://server:1/ping: no answer within the timeout"),
        (("/models/", "/ready"), None),
    ],
    ids=["nothing answers", "only the management API is silent"],
)
def test_waiting_ends_by_its_own_timeout_where_answers_time_out(silent, said):
    now, reasons = [0.0], []
    client = Client(
        "http://server:1",
        token="t",
        management="http://server:2",
        session=Silent(silent, now),
        clock=lambda: now[0],
        sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
    )
    if said is None:  # workers cannot be counted: the ping decides
        client.wait_until_ready(timeout=60)
        return
    with pytest.raises(errors.Unreachable, match=said):
        client.wait_until_ready(timeout=60, on_wait=reasons.append)
    assert 60 <= now[0] < 75
    assert len(reasons) >= 3


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.status(Stage.T2I),
        lambda client: client.check_ready(),
        lambda client: client.scale(Stage.T2I, 1),
        lambda client: client.server.ping(Stage.T2I),
        lambda client: client.server.manage(Stage.T2I),
        lambda client: client.server.look(Stage.T2I),
        lambda client: client.server.set_workers(Stage.T2I, 1, 1),
    ],
    ids=["status", "check_ready", "scale", "ping", "manage", "look", "set_workers"],
)
def test_only_a_request_to_a_stage_stalls(ask):
    client = Client("http://server:1", token="t", management="http://server:2", session=Silent(("/",), [0.0]))
    with pytest.raises(errors.Unreachable, match=r"no answer within the timeout$"):
        ask(client)
    assert client.server.describe(Stage.T2I) is None
    with pytest.raises(errors.Stalled, match="t2i: no data for 3600 s"):
        client.text_to_image("a cat")


def test_a_client_closes_its_connections():
    closed = []

    class Session(requests.Session):
        def close(self):
            closed.append(self)

    with Client("http://server:1", token="t", session=(session := Session())) as client:
        assert client.server.connection.credentials.token
        assert closed == []
    assert closed == [session]


@pytest.mark.parametrize(
    ("method", "model"), [(Client.text_to_image, TextToImageRequest), (Client.image_to_video, ImageToVideoRequest)]
)
def test_the_clients_keywords_are_the_parameters_of_the_schema(method, model):
    keywords = inspect.signature(method).parameters
    assert set(keywords) - {"self", "image", "on_event", "job"} == set(model.model_fields)
    for name, field in model.model_fields.items():
        if field.is_required():
            assert keywords[name].default is inspect.Parameter.empty, name
            continue
        assert keywords[name].default is None, name
        assert kinds(get_type_hints(method)[name]) == kinds(field.annotation), name


def kinds(annotation):
    """The types of a value that may also be None."""
    return set(get_args(annotation)) - {NoneType} if get_origin(annotation) in (Union, UnionType) else {annotation}

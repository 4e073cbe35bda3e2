"""TorchServe's key file: read whole or not at all, and renewed before the first of its keys expires."""

import datetime
import json

import pytest

from cloudvid_schema.key_file import read_keys
from deploy.renewal import Renewal, current, get
from support.loopback import closed_port
from support.proxies import reply, stub

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def write(path, inference, management):
    """A key file with these points of expiry, as TorchServe writes them."""

    def entry(kind, expires):
        return {"key": f"{kind}-key", "expiration time": f"{expires:%Y-%m-%dT%H:%M:%S}.123456789Z"}

    keys = {"management": entry("management", management), "inference": entry("inference", inference)}
    path.write_text(json.dumps({**keys, "API": {"key": "api-key"}}))
    return path


@pytest.mark.parametrize(("inference", "management"), [(2, 1), (1, 2), (1, 1)])
def test_the_first_key_to_expire_counts(tmp_path, inference, management):
    keys = read_keys(write(tmp_path / "key_file.json", START + inference * DAY, START + management * DAY))
    assert keys.expires.replace(microsecond=0) == START + DAY
    assert (keys.inference, keys.management, keys.api) == ("inference-key", "management-key", "api-key")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"inference": {"key": "a"}}', '{"inference": 1, "management": 2, "API": 3}']
)
def test_a_file_that_is_half_written_has_no_keys(tmp_path, text):
    (tmp_path / "key_file.json").write_text(text)
    with pytest.raises(ValueError, match=r"key file|Expecting|key_file"):
        read_keys(tmp_path / "key_file.json")
    assert current(tmp_path / "key_file.json") is None
    assert current(tmp_path / "none.json") is None
    assert not Renewal(closed_port(), tmp_path / "key_file.json").renew()


@pytest.fixture
def asked():
    """A stand-in for the management API that makes tokens: what it was asked for, and the port it is on."""
    seen, state = [], {"refused": ()}

    def answer(handler, body):
        seen.append((handler.path, handler.headers["Authorization"]))
        reply(handler, 400 if handler.path in state["refused"] else 200)

    with stub(answer) as url:
        yield seen, state, int(url.rpartition(":")[2])


BOTH = [("/token?type=management", "Bearer api-key"), ("/token?type=inference", "Bearer api-key")]


@pytest.mark.parametrize(("inference", "management"), [(1, 3), (3, 1)])
def test_keys_are_renewed_in_the_last_twentieth_of_a_life(tmp_path, asked, inference, management):
    seen, _, port = asked
    path = write(tmp_path / "key_file.json", START + inference * DAY, START + management * DAY)
    renewal = Renewal(port, path)
    for hours in (0, 12, 22.7):
        assert not renewal.renew(START + datetime.timedelta(hours=hours)), hours
    assert seen == []
    assert renewal.renew(START + datetime.timedelta(hours=22.9))
    assert seen == BOTH


def test_new_keys_have_a_life_of_their_own(tmp_path, asked):
    seen, _, port = asked
    path = write(tmp_path / "key_file.json", START + DAY, START + DAY)
    renewal = Renewal(port, path)
    assert not renewal.renew(START)
    assert renewal.renew(START + DAY)
    write(path, START + 11 * DAY, START + 11 * DAY)
    for days in (1, 10, 10.4):
        assert not renewal.renew(START + days * DAY), days
    assert renewal.renew(START + 10.6 * DAY)
    assert seen == BOTH * 2


def test_a_renewal_that_is_refused_is_tried_again(tmp_path, asked):
    seen, state, port = asked
    renewal = Renewal(port, write(tmp_path / "key_file.json", START + DAY, START + DAY))
    assert not renewal.renew(START)
    for path, _ in BOTH:
        state["refused"] = (path,)
        assert not renewal.renew(START + DAY)
    state["refused"] = ()
    assert renewal.renew(START + DAY)
    assert seen[-2:] == BOTH


def test_an_answer_comes_with_its_status(asked):
    seen, state, port = asked
    state["refused"] = ("/no",)
    assert get(port, "/yes", "a-key") == (200, b"{}")
    assert get(port, "/no") == (400, b"{}")
    assert seen == [("/yes", "Bearer a-key"), ("/no", None)]
    assert get(closed_port(), "/yes", "a-key") == (0, b"")

"""Answers that stall or are not what they say: never a file."""

import json

import pytest
from fake_server import Answer, event_lines
from fake_torchserve import fake_torchserve
from folders import scenes
from loopback import client_of

from cloudvid import RenderOptions, parse_scenes, render
from cloudvid.events import SceneFailed


def test_an_answer_that_stalls_fails_and_never_becomes_a_file(tmp_path):
    with fake_torchserve(step_seconds=30) as server:
        client = client_of(server, timeout=0.3)
        events = list(render(parse_scenes(scenes(1)), client, tmp_path / "out", RenderOptions(retries=0)))
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["Stalled"]
    assert not (tmp_path / "out/s0_base_image.png").exists()


def doctored(**changes):
    """A result event that says something else than what it holds."""
    lines = [json.loads(line) for line in event_lines("started", "result").body.splitlines()]
    lines[-1] |= changes
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.mark.parametrize(
    "changes",
    [{"size": 10}, {"sha256": "0" * 64}, {"data": "AAAA"}, {"data": "!"}, {"media_type": "text/html"}, {}],
    ids=["length", "digest", "data", "no base64", "media type", "not a whole PNG"],
)
def test_a_result_of_wrong_length_digest_or_content_never_becomes_a_file(changes, tmp_path):
    answer = Answer(200, doctored(**changes), {"Content-Type": "application/x-ndjson"})
    with fake_torchserve(fault=lambda stage, body: answer) as server:
        client = client_of(server)
        events = list(render(parse_scenes(scenes(1)), client, tmp_path / "out", RenderOptions(retries=0)))
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["BrokenAnswer"]
    assert not list((tmp_path / "out").glob("*.png"))

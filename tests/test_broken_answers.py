"""Answers that stall or are not what they say: never a file."""

import hashlib
import io
import json
import struct
import zlib

import pytest
from PIL import Image

from cloudvid import RenderOptions, Stage, parse_scenes, render
from cloudvid.batch.events import SceneFailed
from support.fake_server import Answer, event_lines
from support.fake_torchserve import fake_torchserve
from support.folders import scenes
from support.loopback import client_of
from support.picture_parts import ihdr, png, rows


def test_an_answer_that_stalls_fails_and_never_becomes_a_file(tmp_path):
    with fake_torchserve(step_seconds=30) as server:
        client = client_of(server, timeout=0.3)
        events = list(render(parse_scenes(scenes(1)), client, tmp_path / "out", RenderOptions(retries=0)))
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["Stalled"]
    assert not (tmp_path / "out/s0_base_image.png").exists()


WHOLE = png()


def doctored(data=WHOLE, **changes):
    """A stream whose result says something else than what it holds."""
    lines = [json.loads(line) for line in event_lines("started", "result", data=data).body.splitlines()]
    lines[-1] |= {name.rstrip("_"): value for name, value in changes.items()}
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return Answer(200, body, {"Content-Type": "application/x-ndjson"})


FAULTS = {
    "size": (doctored(size=len(WHOLE) - 1), "the file does not match its digest"),
    "digest": (doctored(sha256="0" * 64), "the file does not match its digest"),
    "digest of another file": (
        doctored(png(header=ihdr(8, 8), pixels=rows(8, 8)), sha256=hashlib.sha256(WHOLE).hexdigest()),
        "its digest",
    ),
    "other data": (doctored(data_="AAAA"), "the file does not match its digest"),
    "no base64": (doctored(data_="!"), "a line of the stream is not an event"),
    "no PNG": (doctored(b"the picture"), "the file is not whole (image/png): no PNG signature"),
    "half a PNG": (doctored(WHOLE[:-20]), "the file is not whole (image/png)"),
    "more than a PNG": (doctored(WHOLE + b"\0"), "1 bytes after its end"),
    "a PNG that lacks a row": (doctored(png(pixels=rows(64, 63))), "its pixels unpack to 4095 bytes, not 4160"),
    "a PNG whose pixels go on": (doctored(png(pixels=zlib.compress(bytes(2**24)))), "unpack to more than 4160 bytes"),
    "a PNG whose pixels lack their checksum": (doctored(png(pixels=rows()[:-4])), "its pixels lack their checksum"),
    "a damaged PNG": (doctored(WHOLE[:50] + b"x" + WHOLE[51:]), "damaged at byte"),
}
"""Streams by what is wrong with them; all else about each is right, so no other check can find the fault first."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_result_with_one_fault_never_becomes_a_file(fault, tmp_path):
    answer, said = FAULTS[fault]
    with fake_torchserve(fault=lambda stage, body: answer) as server:
        client = client_of(server)
        events = list(render(parse_scenes(scenes(1)), client, tmp_path / "out", RenderOptions(retries=0)))
    (failed,) = [event for event in events if isinstance(event, SceneFailed)]
    assert failed.error == "BrokenAnswer"
    assert said in failed.message
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_result_without_a_fault_becomes_a_file(tmp_path):
    answer = doctored()
    with fake_torchserve(fault=lambda stage, body: answer if stage is Stage.T2I else None) as server:
        list(render(parse_scenes(scenes(1)), client_of(server), tmp_path))
    assert (tmp_path / "s0_base_image.png").read_bytes() == WHOLE


def test_an_interlaced_picture_is_whole_too(tmp_path):
    """Seven passes, each of which has rows of its own."""
    passes = ((8, 8), (8, 8), (16, 8), (16, 16), (32, 16), (32, 32), (64, 32))
    pixels = zlib.compress(b"".join((b"\0" + bytes(width)) * height for width, height in passes))
    data = png(header=ihdr(interlace=1), pixels=pixels)
    assert Image.open(io.BytesIO(data)).convert("RGB").size == (64, 64), "Pillow reads it"
    answer = doctored(data)
    with fake_torchserve(fault=lambda stage, body: answer if stage is Stage.T2I else None) as server:
        list(render(parse_scenes(scenes(1)), client_of(server), tmp_path))
    assert (tmp_path / "s0_base_image.png").read_bytes() == data


def test_a_whole_picture_is_no_clip_whatever_its_type(tmp_path):
    answer = doctored(media_type="image/png")
    with fake_torchserve(fault=lambda stage, body: answer if stage is Stage.I2V else None) as server:
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path, RenderOptions(retries=0)))
    (failed,) = [event for event in events if isinstance(event, SceneFailed)]
    assert (failed.stage, failed.error) == (Stage.I2V, "BrokenAnswer")
    assert not list(tmp_path.glob("*.mp4"))


def box(name, content=b""):
    return struct.pack(">I4s", 8 + len(content), name) + content


CLIPS = {
    "a picture": (WHOLE, "the file is not whole (video/mp4)"),
    "no index": (box(b"ftyp") + box(b"mdat"), "no box moov"),
    "no frames": (box(b"ftyp") + box(b"moov"), "no box mdat"),
    "no type": (box(b"moov") + box(b"mdat"), "no box ftyp"),
    "cut": (box(b"ftyp") + box(b"moov") + box(b"mdat", bytes(100))[:-1], "box 'mdat' at byte 16 does not fit"),
    "cut in a head": (box(b"ftyp") + box(b"moov") + box(b"mdat") + bytes(3), "cut at byte 27"),
}


@pytest.mark.parametrize("fault", CLIPS)
def test_what_is_no_whole_clip_is_not_stored(fault, tmp_path):
    data, said = CLIPS[fault]
    answer = doctored(data, media_type="video/mp4")
    with fake_torchserve(fault=lambda stage, body: answer if stage is Stage.I2V else None) as server:
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path, RenderOptions(retries=0)))
    (failed,) = [event for event in events if isinstance(event, SceneFailed)]
    assert (failed.stage, failed.error) == (Stage.I2V, "BrokenAnswer")
    assert said in failed.message
    assert not list(tmp_path.glob("*.mp4"))

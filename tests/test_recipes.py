"""The recipe inside a picture or a clip, whichever program wrote the file."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cloudvid.batch.media import read_recipe
from cloudvid.endpoints.errors import OutputError
from cloudvid_stages.media import mp4_bytes, png_bytes
from support.command_line import cloudvid
from support.picture_parts import chunk, png

RECIPE = {"stage": "t2i", "parameters": {"prompt": "a cat"}}


def picture(text, is_packed=False, key=b"cloudvid"):
    """A PNG with a text, which a writer may pack; with a language and a translated keyword."""
    packed = zlib.compress(text) if is_packed else text
    return png(chunk(b"iTXt", key + b"\0" + bytes([is_packed, 0]) + b"en\0recipe\0" + packed))


def box(name, content, is_long=False):
    if is_long:
        return struct.pack(">I4sQ", 1, name, 16 + len(content)) + content
    return struct.pack(">I4s", 8 + len(content), name) + content


def clip(comment, are_long=False):
    """An MP4 with a comment behind its frames, in boxes with lengths of 32 or 64 bits."""
    content = bytes(8) + comment
    for name in (b"data", b"\xa9cmt", b"ilst"):
        content = box(name, content, are_long)
    for name, head in ((b"meta", bytes(4)), (b"udta", b""), (b"moov", b"")):
        content = box(name, head + content, are_long)
    return box(b"ftyp", b"isom") + box(b"mdat", bytes(100), are_long) + content


@pytest.mark.parametrize("file", [picture, clip])
@pytest.mark.parametrize("is_unusual", [False, True], ids=["as ours", "packed or long"])
def test_a_recipe_is_found_in_whatever_form(file, is_unusual, tmp_path):
    (tmp_path / "file").write_bytes(file(json.dumps(RECIPE).encode(), is_unusual))
    assert read_recipe(tmp_path / "file") == RECIPE


def test_the_stages_files_hold_their_recipes(tmp_path):
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(png_bytes(Image.fromarray(frames[0]), RECIPE))
    (tmp_path / "a.mp4").write_bytes(mp4_bytes(frames, 7, RECIPE))
    assert read_recipe(tmp_path / "a.png") == read_recipe(tmp_path / "a.mp4") == RECIPE


@pytest.mark.parametrize("file", [picture, clip])
@pytest.mark.parametrize("text", [b"", b"a holiday", b'{"workflow": 1}', b'["stage"]', b'"stage"', b'{"stage": 1'])
def test_what_others_wrote_is_no_recipe(file, text, tmp_path):
    (tmp_path / "file").write_bytes(file(text))
    assert read_recipe(tmp_path / "file") is None


def test_a_text_of_another_key_is_no_recipe(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(json.dumps(RECIPE).encode(), key=b"parameters"))
    assert read_recipe(tmp_path / "a.png") is None


@pytest.mark.parametrize("text", [zlib.compress(bytes(2**24)), zlib.compress(b"{}")[:-1]], ids=["bomb", "cut"])
def test_a_packed_recipe_is_whole_and_of_bounded_size(text, tmp_path):
    (tmp_path / "a.png").write_bytes(png(chunk(b"iTXt", b"cloudvid\0\1\0\0\0" + text)))
    with pytest.raises(OutputError, match="its packed recipe is cut, or has more than 1048576 bytes"):
        read_recipe(tmp_path / "a.png")


@pytest.mark.parametrize("as_scene", [[], ["--as-scene"]], ids=["recipe", "scene"])
def test_a_strangers_recipe_is_shown_without_steering_the_terminal(as_scene, tmp_path):
    prompt = "\x1b]0;a\x07 \x7f\x9b2J \u202e \ud800 \U000e0001 \u2028 é 夜"
    (tmp_path / "a.png").write_bytes(picture(json.dumps({"stage": "t2i", "parameters": {"prompt": prompt}}).encode()))
    done = cloudvid("inspect", "a.png", *as_scene, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\n", "").isprintable()
    assert "é 夜" in done.stdout
    shown = json.loads(done.stdout)
    assert (shown[0]["scene_desc"] if as_scene else shown["parameters"]["prompt"]) == prompt


def test_a_pipe_is_no_file_to_inspect(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    done = cloudvid("inspect", "a.png", cwd=tmp_path)
    assert (done.returncode, "a.png is no file" in done.stderr) == (2, True)

"""What a model ignores in a prompt is found and reported."""

import base64
import hashlib
import json
import shutil

import pytest
import requests

from cloudvid import parse_scenes, render
from cloudvid.batch.events import StageDone
from cloudvid.batch.plan import make_plan
from cloudvid.endpoints.answers import whole
from cloudvid_schema.protocol import (
    DIGEST_HEADER,
    MODEL_HEADER,
    SEED_HEADER,
    WARNINGS_HEADER,
    Description,
    Stage,
    TextToImageRequest,
)
from cloudvid_schema.vocabulary import length_warnings, unknown_words, vocabulary_warnings, words
from support.fake_torchserve import fake_torchserve
from support.folders import scenes
from support.loopback import client_of

KNOWN = {"a", "red", "boat", "hot", "air", "balloon"}


def test_words_are_cut_at_anything_but_letters_and_digits():
    assert words("A hot-air balloon, 2 Boats…_und Größe") == [
        "a",
        "hot",
        "air",
        "balloon",
        "2",
        "boats",
        "und",
        "größe",
    ]


def test_a_possessive_and_composed_letters_make_one_word():
    assert words("The lighthouse's gro\u0308\u00dfe") == ["the", "lighthouse", "größe"]


def test_warnings_of_any_request_fit_into_one_header():
    request = TextToImageRequest(prompt="界" * 2000, negative_prompt=" ".join(f"é{number}" for number in range(400)))
    named = list(vocabulary_warnings(request, KNOWN))
    assert named[0] == f"prompt: the model does not know {'界' * 24}…"
    assert len(json.dumps(named)) < 1200
    assert named[1].endswith("more")


def test_unknown_words_are_named_once_and_in_order():
    assert unknown_words("a Tram, a red tram at NIGHT", KNOWN) == ["tram", "at", "night"]
    assert unknown_words("A red boat!", KNOWN) == []


def test_each_prompt_has_its_warning_and_long_ones_are_cut():
    others = [f"w{number:014}" for number in range(50)]
    request = TextToImageRequest(prompt="a red tram", negative_prompt=" ".join(others))
    assert list(vocabulary_warnings(request, KNOWN)) == [
        "prompt: the model does not know tram",
        f"negative_prompt: the model does not know {', '.join(others[:21])} and 29 more",
    ]


@pytest.fixture
def toy(tmp_path, tiny_models):
    """The tiny model with a vocabulary, listed as the demo pair's is."""
    from cloudvid_stages.digests import write_list

    folder = shutil.copytree(tiny_models["t2i"], tmp_path / "toy")
    (folder / "vocabulary.txt").write_text("\n".join(sorted(KNOWN)) + "\n")
    write_list(folder)
    return folder


def test_a_stage_warns_of_words_its_model_does_not_know(toy, tiny_models):
    from support import stages

    loaded = stages.load(toy, "t2i")
    assert loaded.describe().vocabulary == sorted(KNOWN)
    assert stages.run(loaded, stages.prompt(prompt="a red boat")).warnings == ()
    assert stages.run(loaded, stages.prompt(prompt="a red tram")).warnings == ("prompt: the model does not know tram",)
    without = stages.load(tiny_models["t2i"], "t2i")
    assert without.describe().vocabulary is None
    assert stages.run(without, stages.prompt(prompt="a red tram")).warnings == ()


def test_each_picture_of_a_batch_has_its_own_warnings(toy):
    from cloudvid_serving.jobs import Job
    from support import stages

    jobs = [Job(stages.prompt(prompt=text)) for text in ("a red boat", "a red tram", "a hot dog")]
    boat, tram, dog = stages.load(toy, "t2i").run(jobs)
    assert boat.together == 3
    assert boat.warnings == ()
    assert tram.warnings == ("prompt: the model does not know tram",)
    assert dog.warnings == ("prompt: the model does not know dog",)


def test_a_stage_warns_of_the_tokens_that_it_ignores(tiny_models):
    """The tiny model's tokens are letters, and the last one of a word."""
    from support import stages

    loaded = stages.load(tiny_models["t2i"], "t2i")
    assert loaded.describe().prompt_tokens == 75
    assert stages.run(loaded, stages.prompt(prompt="a" * 75)).warnings == ()
    long = stages.prompt(prompt="a" * 75 + " in blue", negative_prompt="b" * 75 + "界" * 1900)
    first, second = stages.run(loaded, long).warnings
    assert first == "prompt: the model reads 75 tokens and ignores the last 6: in blue"
    assert second == f"negative_prompt: the model reads 75 tokens and ignores the last 5700: {'界' * 40}…"
    assert len(json.dumps([first, second])) < 1200, "an answer's warnings share a header"


def test_a_plan_warns_of_prompts_that_are_surely_too_long(tmp_path):
    document = scenes(2)
    document[0]["scene_desc"], document[1]["scene_desc"] = "it's 7" + " a boat" * 36, "it's 7" + " a boat, no_tram" * 15
    painter = Description(stage=Stage.T2I, model="m@1", prompt_tokens=75)
    plan = make_plan(parse_scenes(document), tmp_path, {Stage.T2I: painter})
    assert plan.warnings == ["s1: prompt: the model reads 75 tokens and ignores the rest of these 93 or more"]


def test_pieces_of_a_prompt_are_never_more_than_its_tokens(tiny_models):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_models["t2i"], subfolder="tokenizer")
    painter = Description(stage=Stage.T2I, model="m@1", prompt_tokens=0)
    for text in (
        "it'S we'll 'sea",
        "a_b--c... 12½²",
        "gro\u0308ße 写真 😀😀 ا\u064b",
        "<|endoftext|>",
        "\x01\u200b_ _",
    ):
        (warning,) = length_warnings(TextToImageRequest(prompt=text), painter)
        assert int(warning.split()[-3]) <= len(tokenizer(text).input_ids) - 2


def test_a_changed_vocabulary_is_another_model_and_refused_if_listed(toy):
    from cloudvid_stages.settings import SettingsError
    from cloudvid_stages.weights import fingerprint
    from support import stages

    before = fingerprint(toy)
    (toy / "vocabulary.txt").write_text("tram\n")
    assert fingerprint(toy) != before
    with pytest.raises(SettingsError, match=r"vocabulary\.txt"):
        stages.load(toy, "t2i")


@pytest.mark.parametrize("streams", [False, True])
def test_warnings_reach_the_caller_with_the_file(streams):
    with fake_torchserve(warnings=["prompt: the model does not know größe"]) as server:
        made = client_of(server).text_to_image("größe", on_event=(lambda event: None) if streams else None)
    assert made.warnings == ("prompt: the model does not know größe",)


@pytest.mark.parametrize("streams", [False, True])
def test_warnings_cannot_command_a_terminal(streams):
    with fake_torchserve(warnings=["\x1b]52;c;eA==\x07\u202e"]) as server:
        made = client_of(server).text_to_image("a", on_event=(lambda event: None) if streams else None)
    assert made.warnings == (r"\x1b]52;c;eA==\x07\u202e",)


def test_a_picture_outlives_warnings_that_cannot_be_read():
    made = whole(Stage.T2I, answer(**{WARNINGS_HEADER: '["a"], ["b"]'}))
    assert made.data == b"picture"
    assert made.warnings == ('CloudVid-Warnings cannot be read: ["a"], ["b"]',)


def answer(**headers):
    """What `requests` returns for a picture with these headers."""
    digest = base64.b64encode(hashlib.sha256(b"picture").digest()).decode()
    response = requests.Response()
    response.status_code, response._content = 200, b"picture"
    response.headers.update({"Content-Type": "image/png", SEED_HEADER: "1", MODEL_HEADER: "toy@1", **headers})
    response.headers[DIGEST_HEADER] = f"sha-256=:{digest}:"
    return response


def test_a_batch_keeps_warnings_on_record_and_shows_them(tmp_path):
    with fake_torchserve(warnings=["prompt: the model does not know <b>tram</b>"]) as server:
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path))
    assert next(event.warnings for event in events if isinstance(event, StageDone)) == (
        "prompt: the model does not know <b>tram</b>",
    )
    (line,) = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["t2i"]["warnings"] == ["prompt: the model does not know <b>tram</b>"]
    assert "the model does not know &lt;b&gt;tram&lt;/b&gt;" in (tmp_path / "index.html").read_text()


def test_a_plan_warns_before_anything_is_made(tmp_path):
    document = scenes(2)
    document[0]["scene_desc"], document[1]["scene_desc"] = "a red boat", "a red tram"
    painter = Description(stage=Stage.T2I, model="toy@1", vocabulary=sorted(KNOWN))
    plan = make_plan(parse_scenes(document), tmp_path, {Stage.T2I: painter})
    assert plan.warnings == ["s1: prompt: the model does not know tram"]

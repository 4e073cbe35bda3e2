"""The demo models as they lie in a checkout, and the program that trains them."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from cloudvid.batch.toys import toy_note
from cloudvid_schema.vocabulary import unknown_words
from cloudvid_stages.digests import check_list
from demo.captions import vocabulary
from demo.sheets import PROMPTS
from demo.training import autoencoders, text_to_image
from demo.training.loop import Batches, Interrupted, Plan, train
from demo.training.parts import is_finished, load_part
from deploy import DeployError, profiles
from support import ROOT

MODELS = {stage: ROOT / f"demo/models/cloudvid-demo-{stage}" for stage in ("t2i", "i2v")}
NAMED = {f"CLOUDVID_{stage.upper()}_MODEL": str(folder) for stage, folder in MODELS.items()}


@pytest.mark.parametrize("profile", ["demo", "auto"])
def test_the_demo_models_serve_where_there_is_no_gpu(profile, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in NAMED:
        monkeypatch.delenv(name, raising=False)
    assert profiles.choose_models(profile) == NAMED


def test_a_checkout_without_the_models_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "DEMO", tmp_path)
    with pytest.raises(DeployError, match=f"no model in {tmp_path}/cloudvid-demo-t2i.*make demo-models"):
        profiles.choose_models("demo", ["t2i"])


@pytest.mark.parametrize("stage", MODELS)
def test_the_committed_models_are_small_listed_and_described(stage):
    folder = MODELS[stage]
    check_list(folder, folder.name)
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        "SHA256SUMS",
        "README.md",
    }
    assert "apache-2.0" in (folder / "README.md").read_text()
    assert sum(path.stat().st_size for models in MODELS.values() for path in models.rglob("*")) < 20_000_000


def documented_prompts():
    for path in (ROOT / "README.md", ROOT / "docs/demo.md"):
        text = path.read_text().partition("## Your scenes")
        yield from re.findall(r'"prompt": "(.*?)"|text_to_image\("(.*?)"|cloudvid image \'(.*?)\'', text[0] + text[2])


def test_training_numbers_words_as_the_committed_model_does():
    """The tokenizer is made again by every run that trains, continues or writes the model."""
    committed = CLIPTokenizer.from_pretrained(MODELS["t2i"] / "tokenizer")
    made = text_to_image.tokenizer()
    assert made.get_vocab() == committed.get_vocab()
    assert all(len(made(word).input_ids) == 3 for word in vocabulary()), "a word is one token between two marks"


def test_the_painter_knows_every_word_that_we_show():
    known = (MODELS["t2i"] / "vocabulary.txt").read_text().split()
    assert known == vocabulary()
    scenes = json.loads((ROOT / "examples/input_scenes.json").read_text())
    shown = [*PROMPTS, *(scene["scene_desc"] for scene in scenes), *map("".join, documented_prompts())]
    assert len(shown) > len(PROMPTS) + 6
    assert [word for prompt in shown for word in unknown_words(prompt, known)] == []
    assert unknown_words(toy_note(["cloudvid-demo-t2i@1"]).partition("know ")[2].partition(";")[0], known) == []


def test_every_toy_that_made_a_file_is_noted():
    assert "random" in toy_note(["cloudvid-demo-t2i@1", "cloudvid-tiny-i2v@1"])
    assert "toys" in toy_note(["cloudvid-demo-t2i@1", "cloudvid-tiny-i2v@1"])
    assert toy_note(["stable-diffusion-v1-5/stable-diffusion-v1-5@1"]) is None


# --- training


def line(before_step=None):
    """A network that learns to be constant, and its batches; each step can do something first."""
    network = nn.Linear(4, 4)
    taken = []

    def loss():
        taken.append(len(taken))
        if before_step:
            before_step(len(taken))
        return network(torch.ones(1, 4)).square().mean()

    return network, [Batches("ones", 1.0, loss)], taken


def interrupt_at(step):
    return lambda now: os.kill(os.getpid(), signal.SIGINT) if now == step else None


def test_interrupted_training_continues_from_its_checkpoint(tmp_path):
    checkpoint = tmp_path / "part.pt"
    network, batches, taken = line(interrupt_at(7))
    with pytest.raises(Interrupted):
        train(network, batches, Plan(1e9, 1e-3), checkpoint, seed=1)
    assert torch.load(checkpoint, weights_only=True)["steps"] == len(taken) == 7
    again, batches, more = line(interrupt_at(5))
    with pytest.raises(Interrupted):
        train(again, batches, Plan(1e9, 1e-3), checkpoint, seed=1)
    assert torch.load(checkpoint, weights_only=True)["steps"] == 12
    assert len(more) == 5


def test_a_loss_that_is_nan_leaves_the_checkpoint_untouched(tmp_path):
    checkpoint = tmp_path / "part.pt"
    network, batches, _ = line(interrupt_at(3))
    with pytest.raises(Interrupted):
        train(network, batches, Plan(1e9, 1e-3), checkpoint, seed=1)
    before = checkpoint.read_bytes()
    network, batches, _ = line(interrupt_at(2))
    nan = [Batches("nan", 1.0, lambda: batches[0].loss() * float("nan"))]
    with pytest.raises(FloatingPointError, match="after 5 steps"):
        train(network, nan, Plan(1e9, 1e-3), checkpoint, seed=1)
    assert checkpoint.read_bytes() == before


def test_the_temporal_decoder_starts_frame_by_frame_and_learns():
    clips = autoencoders.temporal_autoencoder(autoencoders.image_autoencoder())
    pool = torch.randint(0, 255, (1, 3, 96, 96, 3), dtype=torch.uint8)
    frames = autoencoders.to_signed(pool[0])
    with torch.no_grad():
        latents = clips.encode(frames).latent_dist.mode()
        together, single = clips.decode(latents, num_frames=3).sample, clips.decode(latents[1:2], num_frames=1).sample
    torch.testing.assert_close(together[1:2], single, atol=1e-4, rtol=1e-4)
    autoencoders.temporal_batches(clips, [pool], area=1)[0].loss().backward()
    learning = {name for name, weight in clips.named_parameters() if weight.requires_grad}
    assert learning == {name for name, weight in clips.named_parameters() if weight.grad is not None}
    assert not any("spatial_res_block" in name for name in learning)


def test_a_part_belongs_to_its_own_image_vae(tmp_path):
    def write(part: str, weights: bytes) -> Path:
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "weights.safetensors").write_bytes(weights)
        return tmp_path / part / "done"

    done = write("text-to-image", b"weights")
    write("image-vae", b"one")
    assert not is_finished("text-to-image", tmp_path)
    done.write_text("7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed")  # of "one"
    assert is_finished("text-to-image", tmp_path)
    write("image-vae", b"another")
    assert not is_finished("text-to-image", tmp_path)
    with pytest.raises(FileNotFoundError, match="text-to-image is not trained"):
        load_part("text-to-image", tmp_path)

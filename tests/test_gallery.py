"""The gallery of an output folder: what it shows, and how a browser shows it."""

import html
import os
import shutil
import subprocess

import pytest
from PIL import Image

from cloudvid import RenderOptions, parse_scenes, render
from cloudvid.batch import gallery as gallery_module
from cloudvid.batch import progress as progress_module
from cloudvid.batch.events import SceneDone, StageDone
from cloudvid.batch.gallery import Gallery
from cloudvid.batch.manifest import Record
from cloudvid.batch.progress import SceneProgress
from cloudvid.batch.scenes import Scene
from support.fake_server import error
from support.fake_torchserve import fake_torchserve
from support.faulty_disk import Recording
from support.folders import scenes
from support.loopback import client_of

HOSTILE = '<script>document.title="owned"</script><img src=x onerror=\'document.title="owned"\'>"\'&{{ 7*7 }}'


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """A folder with a finished, a failed and an unmade scene, and a hostile prompt."""
    folder = tmp_path_factory.mktemp("gallery") / "out"
    document = scenes(4, width=96)
    document[1]["scene_desc"] = document[1]["motion_desc"] = HOSTILE
    fault = error(507, "OutOfMemory", "out of memory <b>")
    with fake_torchserve(fault=lambda stage, body: fault if b"scene 2" in body else None) as server:
        client = client_of(server)
        list(
            render(
                parse_scenes(document), client, folder, RenderOptions(only=["s0", "s1", "s2"]), wait=lambda attempt: 0.0
            )
        )
    return folder


def test_the_gallery_shows_every_scene_and_escapes_everything(gallery):
    text = (gallery / "index.html").read_text()
    assert text.count("<article") == 4
    assert text.count("<video") == text.count('preload="none"') == 2  # a browser opens a thousand players at most
    assert html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    assert "<script" not in text
    assert "onerror='" not in text
    assert "2 done, 1 failed, 1 to do" in text
    assert "t2i answers 507 OutOfMemory: out of memory &lt;b&gt;" in text
    for name in ("s0_base_image.png", "s0_video.mp4"):
        assert f'"{name}"' in text


def test_an_interrupted_batch_leaves_a_gallery_of_what_is_there(tmp_path):
    with fake_torchserve() as server:
        client = client_of(server)
        events = render(parse_scenes(scenes(6)), client, tmp_path)
        while not isinstance(next(events), SceneDone):
            pass
        assert not (tmp_path / "index.html").exists()
        events.close()
    text = (tmp_path / "index.html").read_text()
    assert text.count("<article") == 6
    assert text.count("<video") >= 1


def test_a_clip_of_an_earlier_picture_is_not_shown(tmp_path):
    """The batch is interrupted between the new picture and its clip."""
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(1)), client_of(server), tmp_path))
        assert "1 done" in (tmp_path / "index.html").read_text()
        batch = render(parse_scenes(scenes(1, seed=5)), client_of(server), tmp_path)
        while not isinstance(next(batch), StageDone):
            pass
        batch.close()
    text = (tmp_path / "index.html").read_text()
    assert "1 to do" in text
    assert "s0_base_image.png" in text
    assert "s0_video.mp4" not in text


def test_the_gallery_is_drawn_every_ten_seconds_and_at_last(tmp_path):
    now, disk = [0.0], Recording()
    with fake_torchserve() as server:
        for event in render(parse_scenes(scenes(3)), client_of(server), tmp_path, disk=disk, clock=lambda: now[0]):
            if isinstance(event, StageDone):
                now[0] += 6.0
    assert disk.operations.count(("replace", "index.html")) == 4, "at 12, 24 and 36 seconds, and in the end"


def test_a_redraw_costs_what_has_changed(monkeypatch):
    """No scene is validated or digested again, and no card of another scene is rendered."""
    batch = [SceneProgress.of(scene, embed_recipe=True) for scene in parse_scenes(scenes(50))]
    drawn = Gallery(batch, lambda scene: Record(id=scene))
    first = drawn.page()
    cards, requests = [], []
    card = gallery_module._Card
    monkeypatch.setattr(
        gallery_module, "_Card", lambda progress, *rest, **more: cards.append(progress) or card(progress, *rest, **more)
    )
    monkeypatch.setattr(Scene, "t2i_request", lambda *_: requests.append("t2i"))
    monkeypatch.setattr(Scene, "i2v_request", lambda *_: requests.append("i2v"))
    monkeypatch.setattr(progress_module, "request_digest", lambda request: requests.append("digest"))
    assert drawn.page() == first
    assert cards == requests == []
    batch[7].error = "no luck"
    drawn.changed(batch[7])
    second = drawn.page().decode()
    assert cards == [batch[7]]
    assert requests == []
    assert "no luck" in second
    assert "1 failed, 49 to do" in second


def test_a_batch_digests_each_request_once(monkeypatch, tmp_path):
    digested, now = [], [0.0]
    digest = progress_module.request_digest
    monkeypatch.setattr(progress_module, "request_digest", lambda request: digested.append(request) or digest(request))
    with fake_torchserve() as server:
        for event in render(parse_scenes(scenes(6)), client_of(server), tmp_path, clock=lambda: now[0]):
            if isinstance(event, StageDone):
                now[0] += 11.0  # the gallery is drawn each time
    assert len(digested) == 12


def test_the_gallery_uses_no_network(gallery):
    text = (gallery / "index.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert 'src="/' not in text


def chromium() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@pytest.mark.skipif(chromium() is None and not os.environ.get("CI"), reason="no Chromium here; CI installs one")
def test_the_gallery_renders_in_a_browser_from_a_file_address(gallery, tmp_path):
    picture = tmp_path / "gallery.png"
    common = [
        chromium() or "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-sync",
        "--disable-component-update",
        "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,900",
    ]
    page = (gallery / "index.html").as_uri()
    done = subprocess.run(
        [*common, f"--screenshot={picture}", "--virtual-time-budget=4000", page],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert picture.is_file(), done.stderr.decode()[-2000:]
    image = Image.open(picture).convert("RGB")
    assert image.size == (1200, 900)
    assert len(image.getcolors(2**24)) > 500, "the posters' noise is to be seen"
    dom = subprocess.run(
        [*common, "--dump-dom", "--virtual-time-budget=4000", page],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>CloudVid: 4 scenes</title>" in dom.stdout

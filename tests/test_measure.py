"""The benchmarks' arithmetic, tables and checks. What they measure is theirs to say; `make bench-smoke` runs them."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import figures  # noqa: E402
import measure  # noqa: E402
import outputs  # noqa: E402
import transport  # noqa: E402
from figures import Figure, Line  # noqa: E402
from measure import AGAIN  # noqa: E402
from stand import WrongOutput, environment  # noqa: E402

from cloudvid import parse_scenes  # noqa: E402
from cloudvid_stages.media import mp4_bytes, png_bytes  # noqa: E402
from cloudvid_stages.pictures import open_picture  # noqa: E402


def test_each_round_begins_with_the_next_arm_and_keeps_their_names():
    order = []
    arms = {name: lambda name=name: order.append(name) or float(len(order)) for name in ("a", "b", "a" + AGAIN)}
    samples = measure.interleave(arms, 3)
    assert order == ["a", "b", "a again", "b", "a again", "a", "a again", "a", "b"]
    assert list(samples[1]) == ["a", "b", "a again"]
    assert samples[1] == {"a": 6.0, "b": 4.0, "a again": 5.0}


def test_a_ratio_is_of_pairs_and_an_arm_that_ran_twice_counts_by_its_mean():
    # The machine is three times as slow in the second round: the ratios of the pairs do not see it.
    samples = [{"a": 1.0, "b": 2.0, "a again": 3.0}, {"a": 3.0, "b": 6.0, "a again": 9.0}]
    assert measure.ratio(samples, "a", "b") == measure.Estimate(1.0, 1.0, 1.0)
    assert measure.noise_floor(samples, "a").value == 3.0


def test_an_interval_holds_the_median_and_is_the_same_every_time():
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    first = measure.median(values)
    assert first == measure.median(values)
    assert first.value == 3.0
    assert 1.0 <= first.low < 3.0 < first.high <= 100.0


def test_a_straight_line_is_found_through_an_outlier():
    points = [(x, 5 + 8 * x) for x in (0.0, 1.0, 3.0) for _ in range(5)]
    at_zero, slope = measure.straight_line([*points, (3.0, 1000.0)])
    assert (at_zero.value, slope.value) == (pytest.approx(5), pytest.approx(8))
    with pytest.raises(ValueError, match="two points"):
        measure.straight_line([(1.0, 1.0), (1.0, 2.0)])


@pytest.mark.parametrize(
    ("line", "reached"),
    [
        (Line("x", 1.03, at_most=1.03), True),
        (Line("x", 1.04, low=0.9, high=1.1, at_most=1.03), False),
        (Line("x", 1.01, low=0.99, high=1.1, at_most=1.0, equal_counts=True), True),
        (Line("x", 1.02, low=1.01, high=1.1, at_most=1.0, equal_counts=True), False),
        (Line("x", 1.79, at_least=1.8), False),
        (Line("x", 1.8, at_least=1.8), True),
        (Line("x", 7.0), None),
    ],
)
def test_what_is_reached(line, reached):
    assert line.reached is reached


def kept(folder, value):
    figure = Figure("R4", "A second worker", [Line("clips", value, low=1.7, high=1.9, floor=1.002, at_least=1.8)])
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 24, "versions": {"torch": "2.13.0"}}
    figures.save(figure, machine, folder)
    return figure


def test_a_figure_that_is_kept_comes_back_whole(tmp_path):
    figure = kept(tmp_path, 1.85)
    assert figures.load(tmp_path / "R4.json")[0] == figure
    assert json.loads((tmp_path / "R4.json").read_text())["lines"][0]["reached"] is True


def test_the_table_shows_the_runs_that_have_a_name_beside_each_other(tmp_path):
    for run, value in (("first", 1.85), ("second", 1.75), ("2026-11-23-120000", 1.0)):
        kept(tmp_path / run, value)
    runs = figures.named_runs(tmp_path)
    assert [run.name for run in runs] == ["first", "second"]
    *_, row = figures.markdown(runs).splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:3] == ["R4", "clips", "≥ 1.800"]
    assert cells[3:6] == ["1.850 (1.700 to 1.900)", "1.002", "yes"]
    assert cells[6:] == ["1.750 (1.700 to 1.900)", "1.002", "no"]
    assert "second: a processor, 2 cores, 24 GiB; torch 2.13.0" in figures.machines(runs)
    assert "Not measured yet" in figures.markdown([])


def test_a_scene_of_other_pixels_or_of_another_size_is_seen(tmp_path):
    scene = {
        "id": "s",
        "scene_desc": "a lamp",
        "t2i_params": {"width": 64, "height": 64},
        "i2v_params": {"num_frames": 2},
    }
    scenes = parse_scenes([scene])
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    for name, picture, frames in (("one", 0, 2), ("same", 0, 2), ("other", 1, 2), ("long", 0, 3)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = {"stage": name}  # which does not count
        (folder / "s_base_image.png").write_bytes(png_bytes(Image.fromarray(noise[picture]), recipe))
        (folder / "s_video.mp4").write_bytes(mp4_bytes(noise[:frames], 6, recipe))
    outputs.check_scenes(scenes, tmp_path / "one", same_as=tmp_path / "same")
    with pytest.raises(WrongOutput, match=r"s_base_image\.png has other pixels"):
        outputs.check_scenes(scenes, tmp_path / "one", same_as=tmp_path / "other")
    with pytest.raises(WrongOutput, match=r"made \(3, 64, 64, 3\), not \(2, 64, 64, 3\)"):
        outputs.check_scenes(scenes, tmp_path / "long")


def test_a_padded_picture_has_its_size_and_the_same_pixels():
    small, large = transport.padded_picture(0), transport.padded_picture(2**20)
    assert len(large) == 2**20
    assert open_picture(large).tobytes() == open_picture(small).tobytes()
    assert Image.open(io.BytesIO(large)).size == (64, 64)


def test_no_variable_of_this_shell_names_a_model_for_a_benchmark(monkeypatch):
    monkeypatch.setenv("CLOUDVID_T2I_MODEL", "elsewhere")
    with environment({"OMP_NUM_THREADS": "1"}):
        assert "CLOUDVID_T2I_MODEL" not in os.environ
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["CLOUDVID_T2I_MODEL"] == "elsewhere"

"""The benchmarks' arithmetic, tables and checks. What they measure is theirs to say; `make bench-smoke` runs them."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from benchmarks import figures, measure, outputs
from benchmarks.figures import Figure, Line
from benchmarks.outputs import WrongOutput
from cloudvid import parse_scenes
from cloudvid_stages.media import mp4_bytes, png_bytes
from cloudvid_stages.pictures import open_picture
from support import prepare_process
from support.picture_parts import padded_picture


def test_each_round_begins_with_the_next_arm():
    order = []
    arms = {name: lambda name=name: order.append(name) or float(len(order)) for name in ("a", "b")}
    samples = measure.interleave(arms, 3, again="a")
    assert order == ["a", "b", "a", "b", "a", "a", "a", "a", "b"]
    assert list(samples[1]) == ["a", "b", "a again"]
    assert samples[1] == {"a": 6.0, "b": 4.0, "a again": 5.0}


def test_a_ratio_compares_pairs_by_the_mean_of_each_arm():
    # The machine is three times as slow in the second round: the ratios of the pairs do not see it.
    samples = [{"a": 1.0, "b": 2.0, "a again": 3.0}, {"a": 3.0, "b": 6.0, "a again": 9.0}]
    assert measure.ratio(samples, "a", "b") == measure.Estimate(1.0, 1.0, 1.0)
    assert measure.noise_floor(samples, "a") == 3.0


def test_an_interval_contains_the_median_and_is_repeatable():
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


@pytest.fixture
def kept(tmp_path):
    """A figure that was saved."""
    lines = [Line("clips", 1.85, low=1.7, high=1.9, floor=1.002, at_least=1.8)]
    figure = Figure("R4", "A second worker", lines, {"rounds": []}, {"fps": 6})
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 24, "versions": {"torch": "2.13.0"}}
    figures.save(figure, machine, tmp_path)
    return figure


def test_a_figure_that_is_kept_comes_back_whole(kept, tmp_path):
    assert figures.load(tmp_path / "R4.json")[0] == kept
    assert json.loads((tmp_path / "R4.json").read_text())["lines"][0]["reached"] is True


def test_the_table_shows_a_runs_figures_and_its_machine(kept, tmp_path):
    *_, row, _, machine = figures.markdown(tmp_path).splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["R4", "clips", "≥ 1.800", "1.850 (1.700 to 1.900)", "1.002", "yes"]
    assert machine == "Measured on: a processor, 2 cores, 24 GiB; torch 2.13.0."
    assert "Not measured yet" in figures.markdown(tmp_path / "none")


def test_a_scene_of_other_pixels_or_size_is_noticed(tmp_path):
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
    small, large = padded_picture(0), padded_picture(2**20)
    assert len(large) == 2**20
    assert open_picture(large).tobytes() == open_picture(small).tobytes()
    assert Image.open(io.BytesIO(large)).size == (64, 64)


def test_no_variable_of_this_shell_names_a_model(monkeypatch):
    monkeypatch.setenv("CLOUDVID_T2I_MODEL", "elsewhere")
    prepare_process()
    assert "CLOUDVID_T2I_MODEL" not in os.environ

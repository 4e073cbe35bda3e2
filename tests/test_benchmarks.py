"""The benchmarks run and judge right, and their full-size models are the real ones' size. No time is asserted."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.cpu import SMALLEST
from benchmarks.outputs import WrongOutput, check
from cloudvid_schema.protocol import Stage
from cloudvid_stages.media import mp4_bytes
from support import ROOT, full_size
from support.full_size import Case

ARMS = ["eager", "eager again", "compile regional", "deep_cache 3", "offload model"]


@pytest.mark.parametrize(
    ("stage", "millions"),
    [
        (Stage.T2I, {"unet": 865.9, "vae": 83.7, "text_encoder": 340.4}),
        (Stage.I2V, {"unet": 1524.6, "vae": 97.7, "image_encoder": 632.1}),
    ],
)
def test_the_full_size_networks_have_the_real_ones_parameters(stage, millions):
    counted = {
        name: sum(parameter.numel() for parameter in network.parameters()) / 1e6
        for name, network in full_size.parts(stage).items()
    }
    assert counted == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("case", list(full_size.RECKONED)[::2], ids=str)
def test_the_counted_work_is_the_calculated_work(case):
    assert tuple(full_size.work(case).values()) == pytest.approx(full_size.RECKONED[case], rel=2e-3)


def test_every_arm_is_checked_or_listed_with_the_reason(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--output", str(output), "--arms", *ARMS]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "client:handlers:tests"}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    cells = {(cell["arm"]["name"], cell["case"]): cell for cell in result["cells"]}
    first, *others = map(str, gpu.SMOKE_CASES)
    assert set(cells) == {(arm, first) for arm in ARMS} | {(arm, case) for arm in ARMS[:-1] for case in others}
    for (arm, case), cell in cells.items():
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{case:28}{arm:24}"))
        if cell["state"] == "measured":
            assert {"denoise", "decode", "encode"} <= cell["samples"][0].keys()
        else:
            assert cell["state"] == "refused"
            assert cell["reason"] in line
    of_eager = [cell for (arm, _), cell in cells.items() if arm in ("eager", "eager again")]
    assert [cell["off_eager"] for cell in of_eager] == [[0]] * len(of_eager)
    assert {cell["state"] for (arm, _), cell in cells.items() if arm == "compile regional"} == {"measured"}
    assert "runs on the CPU" in cells["offload model", first]["reason"]
    assert len(result["ceiling"]["samples"]) > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about a machine without a GPU")
def test_without_a_gpu_the_benchmark_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(output)])
    assert gpu.main() == 2
    assert "no CUDA GPU" in capsys.readouterr().err
    assert not output.exists()


def test_the_important_comes_first():
    cells = [gpu.Cell(arm, case) for arm in gpu.ARMS for case in full_size.RECKONED]
    order = [(group[0].arm.name, [str(cell.case) for cell in group]) for group in gpu.in_order(cells)]
    t2i, t2i_wide, i2v, i2v_narrow = map(str, full_size.RECKONED)
    assert order[:4] == [
        ("eager", [t2i, t2i_wide]),
        ("eager", [i2v, i2v_narrow]),
        ("compile full", [t2i]),
        ("compile full", [i2v]),
    ]
    second = [cases for _, cases in order].index([t2i_wide])
    assert {name for name, _ in order[:second]} == {arm.name for arm in gpu.ARMS}
    assert sum(len(cases) for _, cases in order) == len(cells)


def test_a_file_of_one_colour_or_wrong_size_is_noticed():
    case = SMALLEST[Stage.I2V]
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    data = mp4_bytes(noise, 7, None)
    assert check(data, case.shape).shape == (2, 64, 64, 3)
    with pytest.raises(WrongOutput, match=r"not \(3, 64, 64, 3\)"):
        check(data, Case(Stage.I2V, 64, 64, 1, 3).shape)
    with pytest.raises(WrongOutput, match="one colour"):
        check(mp4_bytes(np.zeros_like(noise), 7, None), case.shape)

"""Batches of pictures through the real TorchServe, and what its metrics count."""

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pynvml
import pytest
import requests
import torch

from cloudvid import Client
from cloudvid_schema.protocol import JSON, NDJSON, PNG, Stage
from cloudvid_stages import gpu
from cloudvid_stages.recipe import recipe_of_png
from support import changed_archives
from support.fake_torchserve import _Worker, fake_torchserve
from support.noise import Picture
from support.servers import running_server


def in_batches_of_four(handlers):
    config = handlers / "t2i.yaml"
    text = config.read_text()
    # A batch that is full goes at once: the delay is only for requests that come late.
    for old, new in (("batchSize: 1 ", "batchSize: 4 "), ("maxBatchDelay: 1 ", "maxBatchDelay: 20000 ")):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)


@pytest.fixture(scope="module")
def batching(tmp_path_factory, tiny_models):
    """A server of only t2i, whose archive differs by its batches of four."""
    folder = tmp_path_factory.mktemp("batching")
    store = changed_archives.build(folder, in_batches_of_four)
    with running_server(folder / "run", {"t2i": tiny_models["t2i"]}, store) as running:
        yield running


def ask(server, accept=PNG, **values):
    key = json.loads(server.key_file.read_text())["inference"]["key"]
    body = {"prompt": "a lamp", "width": 64, "height": 64, "num_inference_steps": 3, **values}
    headers = {"Authorization": f"Bearer {key}", "Accept": accept}
    return requests.post(f"{server.url}/predictions/t2i", json=body, headers=headers, timeout=120)


def counted(server):
    """Every metric of ours: by name and labels, its value."""
    text = requests.get(f"http://127.0.0.1:{server.process.port + 2}/metrics", timeout=10).text
    found = {}
    for name, labels, value in re.findall(r"^(cloudvid_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        kept = tuple(label for label in re.findall(r'(\w+)="([^"]*)"', labels) if label[0] != "Hostname")
        found[name, kept] = float(value)
    return found


@pytest.mark.slow
def test_requests_that_arrive_together_get_their_own_answers(batching):
    asked = [{"seed": 1}, {"seed": 2, "accept": NDJSON}, {"num_inference_steps": 0}, {"seed": 3, "width": 128}]
    before = counted(batching)
    with ThreadPoolExecutor(4) as pool:
        plain, streamed, refused, wide = pool.map(lambda values: ask(batching, **values), asked)
    assert [answer.status_code for answer in (plain, streamed, refused, wide)] == [200, 200, 422, 200]
    assert recipe_of_png(plain.content)["batch_size"] == 2
    assert recipe_of_png(plain.content)["parameters"]["seed"] == 1
    events = [json.loads(line) for line in streamed.text.splitlines()]
    assert [event["event"] for event in events] == ["started", *["progress"] * 6, "result"]
    assert (events[-1]["seed"], events[-1]["recipe"]["batch_size"]) == (2, 2)
    assert refused.headers["Content-Type"].startswith(JSON)
    assert refused.json()["errors"][0]["parameter"] == "num_inference_steps"
    assert "batch_size" not in recipe_of_png(wide.content)
    assert batching.client().server.manage("t2i").ready == 1
    after = counted(batching)

    def grown(name, *labels):
        key = name, (("stage", "t2i"), *labels)
        return after[key] - before.get(key, 0.0)

    assert grown("cloudvid_requests_total", ("outcome", "done")) == 3
    assert grown("cloudvid_requests_total", ("outcome", "refused")) == 1
    assert grown("cloudvid_steps_total") == 9
    assert grown("cloudvid_frames_total") == 3
    assert grown("cloudvid_phase_seconds_total", ("phase", "denoise")) > 0


def test_the_metrics_exist_from_the_start_and_count(server):
    for stage in ("t2i", "i2v"):
        found = counted(server)
        for name, labels in {
            ("cloudvid_requests_total", (("stage", stage), ("outcome", "done"))),
            ("cloudvid_phase_seconds_total", (("stage", stage), ("phase", "denoise"))),
            ("cloudvid_phase_seconds_total", (("stage", stage), ("phase", "encode"))),
            ("cloudvid_steps_total", (("stage", stage),)),
            ("cloudvid_frames_total", (("stage", stage),)),
            ("cloudvid_memory_retries_total", (("stage", stage),)),
        }:
            assert (name, labels) in found, name
        assert found["cloudvid_peak_memory_bytes", (("stage", stage), ("device", "cpu"))] > 100 * 2**20


def test_the_description_comes_through_the_management_api(server):
    described = server.client().server.describe("t2i")
    assert (described.device, described.precision) == ("cpu", "fp32")
    assert described.settings["compile"] == "off"
    assert described.limits == {}
    assert described.peak_memory > 100 * 2**20


def test_a_missing_gauge_leaves_the_other_gauges_of_a_gpu(monkeypatch, caplog):
    def lacking(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(gpu, "_handle", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used=3 * 2**30, total=2**33))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda handle: SimpleNamespace(gpu=97))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTemperature", lambda handle, sensor: 61)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", lacking)
    found = gpu.gpu_gauges(torch.device("cuda:1"))
    assert found == {
        "gpu_memory_used_bytes": 3 * 2**30,
        "gpu_memory_total_bytes": 2**33,
        "gpu_utilization_percent": 97,
        "gpu_temperature_celsius": 61,
    }
    monkeypatch.setattr(Picture, "device", "cuda:1")
    monkeypatch.setattr(Picture, "gauges", lambda self: found)
    with caplog.at_level(logging.INFO, logger="ts.metrics.caching_metric"):
        _Worker(Stage.T2I, "noise@1", 0.0)
    # TorchServe reads dimensions as name:value and drops one with a further colon.
    assert "[METRICS]cloudvid_gpu_temperature_celsius.celsius:61.0|#stage:t2i,device:cuda1|" in caplog.text


def test_a_driver_that_fails_takes_no_answer_with_it(monkeypatch, caplog):
    def lost(self):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    with fake_torchserve() as server:
        monkeypatch.setattr(Picture, "gauges", lost)
        assert Client(server.url).text_to_image(prompt="a lamp").data
    assert "the device cannot be measured" in caplog.text

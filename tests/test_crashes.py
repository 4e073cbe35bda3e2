"""Crashes: of every file operation, of answers at any byte; interrupts. Nothing is lost or half done.

The client that is killed at random moments is case F5 of the soak (soak/test_client.py).
"""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from cloudvid import Client, OutputError, RenderOptions, parse_scenes, render
from cloudvid.batch.events import SceneFailed
from cloudvid.endpoints import errors
from cloudvid_schema.processes import interrupts
from cloudvid_schema.protocol import Stage
from support import forked
from support.command_line import clean_environment
from support.fake_server import error
from support.fake_torchserve import fake_torchserve
from support.faulty_disk import Faulty
from support.folders import (
    contents,
    leftovers,
    no_half_file_has_a_final_name,
    scenes,
    what_is_on_record_is_on_the_disk,
    write_scenes,
)
from support.loopback import client_of, connection


def run(server, scene_file, folder):
    """Arguments of `cloudvid`."""
    return ["run", str(scene_file), "--output-dir", str(folder), *connection(server), "-q"]


def command(server, scene_file, folder):
    return [sys.executable, "-m", "cloudvid.cli", *run(server, scene_file, folder)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a batch of six that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(6)), client_of(server), folder))
    return contents(folder)


@pytest.fixture(scope="module")
def whole_pair(tmp_path_factory):
    """The folder of one scene that nothing disturbs, and how many file operations it took."""
    folder, disk = tmp_path_factory.mktemp("whole") / "out", Faulty(0, "short")
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(1)), client_of(server), folder, disk=disk))
    assert disk.operations > 25
    return contents(folder), disk.operations


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC, "short"])
def test_each_file_operation_may_fail_and_a_rerun_repairs(fault, whole_pair, tmp_path):
    undisturbed, operations = whole_pair
    with fake_torchserve() as server:
        client = client_of(server)
        for at in range(1, operations + 1):
            folder = tmp_path / str(at)
            disk = Faulty(at, fault)
            posts = server.posts.total()
            try:
                list(render(parse_scenes(scenes(1)), client, folder, disk=disk))
                failed = False
            except OutputError as error:
                failed = True
                assert os.strerror(fault) in str(error)
            assert failed == (fault != "short"), f"operation {at}"
            assert no_half_file_has_a_final_name(folder)
            assert what_is_on_record_is_on_the_disk(folder)
            assert not leftovers(folder), f"operation {at}"
            list(render(parse_scenes(scenes(1)), client, folder))
            assert contents(folder) == undisturbed, f"operation {at}"
            assert server.posts.total() - posts <= 3, f"operation {at}: at most the file that failed is made again"


@pytest.mark.slow
def test_the_process_may_end_anywhere_and_a_rerun_repairs(whole_pair, tmp_path):
    undisturbed, operations = whole_pair
    with fake_torchserve() as server:
        client = client_of(server)
        for at in range(1, operations + 1):
            folder = tmp_path / str(at)
            arguments = server.url, folder, at
            ended = forked.run("support.faulty_disk:main", *arguments, cwd=tmp_path, environment=clean_environment())
            assert ended.returncode == 9, ended.stderr
            assert no_half_file_has_a_final_name(folder)
            assert what_is_on_record_is_on_the_disk(folder)
            list(render(parse_scenes(scenes(1)), client, folder))
            assert contents(folder) == undisturbed, f"operation {at}"


def test_an_answer_cut_anywhere_never_becomes_a_file(tmp_path, whole_pair):
    """The first fifty pictures and the clips of the other fifty: no two answers of a stage at the same place."""
    undisturbed, _ = whole_pair
    names = {Stage.T2I: "s0_base_image.png", Stage.I2V: "s0_video.mp4"}
    cuts = {}
    for stage, name in names.items():
        length = len(undisturbed[name])  # in an answer the data is a third longer, and some events are before it
        cuts[stage] = iter([1 + index * length // 40 for index in range(50)])
    with fake_torchserve(workers=10, cut=lambda stage: next(cuts[stage], None)) as server:
        client = client_of(server)
        folder = tmp_path / "out"
        events = list(render(parse_scenes(scenes(100)), client, folder, RenderOptions(retries=0)))
        failed = [event.error for event in events if isinstance(event, SceneFailed)]
        assert failed == ["BrokenAnswer"] * 100
        assert len(list(folder.glob("*.png"))) == 50, "those of the cut clips"
        assert not list(folder.glob("*.mp4"))
        assert no_half_file_has_a_final_name(folder)
        list(render(parse_scenes(scenes(100)), client, folder))
        assert len(list(folder.glob("*.mp4"))) == 100
        assert no_half_file_has_a_final_name(folder)
        made = contents(folder)
        assert all(made[name] == undisturbed[name] for name in names.values())


def test_a_second_client_on_a_folder_does_no_damage(undisturbed, tmp_path):
    scene_file = write_scenes(tmp_path / "scenes.json", 6)
    with fake_torchserve(step_seconds=0.05) as server:
        first = render(parse_scenes(scenes(6)), client_of(server), tmp_path / "out")
        next(first)
        second = subprocess.run(
            command(server, scene_file, tmp_path / "out"),
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert f"another cloudvid works in {tmp_path / 'out'} (process {os.getpid()} on " in second.stderr
        list(first)
        assert server.posts.total() == 12
    assert contents(tmp_path / "out") == undisturbed


def test_two_clients_without_working_locks_lose_nothing(undisturbed, tmp_path, monkeypatch):
    """Each makes half of the scenes, at the same time; the second to open sweeps what it takes for leftovers."""
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with fake_torchserve(workers=2, step_seconds=0.01) as server:
        client = client_of(server)
        halves = [["s0", "s2", "s4"], ["s1", "s3", "s5"]]
        batches = [
            render(parse_scenes(scenes(6)), client, tmp_path / "out", RenderOptions(only=half)) for half in halves
        ]
        last = {}
        while batches:
            for batch in list(batches):
                event = next(batch, None)
                if event is None:
                    batches.remove(batch)
                else:
                    last[id(batch)] = event
        assert [(event.done, event.failed) for event in last.values()] == [(3, 0), (3, 0)]
        posts = server.posts.total()
        list(render(parse_scenes(scenes(6)), client, tmp_path / "out"))
        assert server.posts.total() == posts == 12
    assert contents(tmp_path / "out") == undisturbed


def test_one_absent_stage_does_not_stop_the_other(undisturbed, tmp_path):
    with fake_torchserve() as server:
        client = client_of(server)
        list(render(parse_scenes(scenes(6)), client, tmp_path / "out"))
        for index in range(3):
            (tmp_path / f"out/s{index}_video.mp4").unlink()
        (tmp_path / "out/s5_base_image.png").unlink()
        split = Client(server.url, t2i_url="http://127.0.0.1:1", management=server.url, token="t")
        with pytest.raises(errors.Unreachable):
            list(render(parse_scenes(scenes(6)), split, tmp_path / "out", RenderOptions(patience=0.0)))
        for index in range(3):
            assert (tmp_path / f"out/s{index}_video.mp4").is_file()


def test_hang_up_is_ignored_under_nohup(tmp_path):
    scene_file = write_scenes(tmp_path / "scenes.json", 2)
    with fake_torchserve(step_seconds=0.1) as server:
        process = subprocess.Popen(["nohup", *command(server, scene_file, tmp_path / "out")], env=clean_environment())
        server.await_post(1, lambda: process.poll() is None)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 0


def test_a_run_reports_and_counts_its_wait_for_busy_workers(tmp_path):
    """They are asked for their models first, and answer when they are through with requests of before."""
    free = threading.Event()
    scene_file = write_scenes(tmp_path / "scenes.json", 1)
    with fake_torchserve() as server:
        for stage in Stage:
            (worker,) = server.pool[stage]
            answer = worker.answer
            worker.answer = lambda *arguments, answer=answer: free.wait(timeout=60) and answer(*arguments)
        loud = command(server, scene_file, tmp_path / "out")[:-1]
        process = subprocess.Popen(
            loud, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert "workers are busy" in process.stderr.readline()
        free.set()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert int(re.search(r"1 of 1 scenes done \((\d+) s\)", said)[1]) > 0, "it said so after three seconds"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_the_resuming_command(sign, undisturbed, tmp_path):
    """A step takes ten minutes here: a client that waited for it would be killed by the time-out."""
    scene_file = write_scenes(tmp_path / "scenes.json", 6)
    with fake_torchserve(step_seconds=600) as server:
        process = subprocess.Popen(
            [*command(server, scene_file, tmp_path / "out")[:-1], "--json"],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stdout:
            if '"stage_started"' in line:
                break
        process.send_signal(sign)
        events, said = process.communicate(timeout=60)
        assert process.returncode == 130
    last = json.loads(events.splitlines()[-1])
    assert (last["event"], last["stopped"]) == ("batch_finished", "interrupted")
    assert "Traceback" not in said
    assert "interrupted; continue with\n  cloudvid run " in said
    with fake_torchserve() as server:
        subprocess.run(command(server, scene_file, tmp_path / "out"), env=clean_environment(), check=True, timeout=60)
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.timeout(60)
def test_an_interrupt_that_comes_in_a_destructor_is_not_lost():
    """Python drops an exception that is raised there; the wait after it would last for ever."""

    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), interrupts():
        last = Last()
        del last
        threading.Event().wait()


def test_a_signal_after_the_batch_has_no_effect():
    """The handlers are put back one by one; meanwhile the timer that raises a lost interrupt again must stay off."""
    put_back, before = signal.signal, signal.getsignal(signal.SIGALRM)

    def with_a_signal_before(sign, handler):
        signal.raise_signal(sign)
        return put_back(sign, handler)

    with pytest.MonkeyPatch.context() as patched, interrupts():
        patched.setattr(signal, "signal", with_a_signal_before)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_fail_fast_stops_at_the_first_failure(tmp_path):
    refuse = error(422, "InvalidParameters")
    with fake_torchserve(fault=lambda stage, body: refuse if b"scene 0" in body else None) as server:
        client = client_of(server)
        events = list(render(parse_scenes(scenes(6)), client, tmp_path / "out", RenderOptions(fail_fast=True)))
    assert events[-1].stopped == "failed"
    assert events[-1].failed == 1
    assert events[-1].done < 5


def test_a_server_that_stays_away_ends_the_batch_for_now(tmp_path):
    with fake_torchserve() as server:
        url = server.url
    client = Client(url, management=url, token="t")
    events = []
    with pytest.raises(errors.Unreachable):
        for event in render(parse_scenes(scenes(2)), client, tmp_path / "out", RenderOptions(patience=0.0)):
            events.append(event)
    assert "nothing answers" in events[-1].stopped

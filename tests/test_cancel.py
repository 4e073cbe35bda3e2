"""Cancelling: a job ends within one step, no matter who asks for it and where it waits, and no other job is touched."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
import requests

from cloudvid import Stage, parse_scenes, render
from cloudvid.batch.events import SceneCancelled, StageProgress
from cloudvid.endpoints import errors
from cloudvid_schema.ports import EXPORTER
from cloudvid_schema.protocol import JobStatus, RequestError
from cloudvid_serving.job_files import JobFiles, RunningJob
from cloudvid_serving.jobs import Job
from support import stages
from support.command_line import cloudvid, command, environment
from support.held_clip import HeldClip
from support.waiting import until


@pytest.fixture(scope="module", params=["t2i", "i2v"])
def loaded(request, tiny_models):
    return stages.load(tiny_models[request.param], request.param)


def test_a_cancelled_job_ends_after_the_step_in_hand(loaded):
    steps = []
    request, picture = stages.REQUESTS[loaded.stage]
    job = Job(request, picture, on_step=lambda *step: steps.append(step), is_cancelled=lambda: len(steps) == 2)
    (outcome,) = loaded.run([job])
    assert outcome.body.code == 409
    assert outcome.body.type == "Cancelled"
    assert [step for _, step, _ in steps] == [1, 2]


def test_a_job_after_a_cancelled_one_has_its_usual_bytes(loaded):
    request, picture = stages.REQUESTS[loaded.stage]
    before = stages.run(loaded, request, picture)
    seen = []
    loaded.run([Job(request, picture, on_step=lambda *step: seen.append(step), is_cancelled=lambda: len(seen) > 1)])
    assert len(seen) == 2
    assert stages.run(loaded, request, picture).data == before.data


def test_a_job_cancelled_in_the_queue_is_not_begun(loaded):
    steps = []
    request, picture = stages.REQUESTS[loaded.stage]
    job = Job(request, picture, on_step=lambda *step: steps.append(step), is_cancelled=lambda: True)
    (outcome,) = loaded.run([job])
    assert outcome.body.type == "Cancelled"
    assert not steps


def test_the_others_of_a_batch_go_on(tiny_models):
    loaded = stages.load(tiny_models["t2i"], "t2i")
    first, second = (stages.prompt(seed=seed) for seed in (1, 2))
    whole = loaded.run([Job(first), Job(second)])
    steps = []
    jobs = [
        Job(first, on_step=lambda *step: steps.append(step), is_cancelled=lambda: len(steps) >= 2),
        Job(second),
    ]
    cancelled, done = loaded.run(jobs)
    assert cancelled.body.type == "Cancelled"
    assert done.data == whole[1].data


# --- the files


def test_a_running_job_is_on_record_until_its_end(tmp_path):
    files = JobFiles(tmp_path)
    job = RunningJob(files, "a.1", "i2v")
    (status,) = files.all()
    assert (status.id, status.state, status.worker) == ("a.1", "running", os.getpid())
    assert not job.is_cancelled()
    files.cancel("a.1")
    assert job.is_cancelled()
    job.end()
    assert not list(tmp_path.iterdir())


def test_steps_are_put_on_record_at_most_once_a_second(tmp_path, monkeypatch):
    now = 10.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    files = JobFiles(tmp_path)
    job = RunningJob(files, "a", "t2i")
    job.on_step("denoise", 1, 9)
    assert files.all()[0].step is None
    now = 11.0
    job.on_step("denoise", 2, 9)
    job.on_step("denoise", 3, 9)
    (status,) = files.all()
    assert (status.phase, status.step, status.steps) == ("denoise", 2, 9)


def test_a_job_cancelled_before_it_arrives_does_not_begin(tmp_path):
    files = JobFiles(tmp_path)
    assert files.cancel("later") is None
    with pytest.raises(RequestError) as refused:
        RunningJob(files, "later", "t2i")
    assert refused.value.body.code == 409
    assert not list(tmp_path.iterdir())


def test_an_announcement_that_comes_late_does_not_lift_a_cancellation(tmp_path):
    files = JobFiles(tmp_path)
    files.cancel("a")
    files.announce("a", "t2i")
    assert files.all()[0].state == "queued"
    with pytest.raises(RequestError):
        RunningJob(files, "a", "t2i")


def test_records_of_dead_workers_and_old_cancellations_vanish(tmp_path):
    files = JobFiles(tmp_path)
    files.write(JobStatus(id="dead", stage="t2i", state="running", since=1, worker=2**22 - 1))
    files.cancel("long-ago")
    os.utime(files.cancellation("long-ago"), (1, 1))
    assert files.all() == []
    assert not list(tmp_path.iterdir())


# --- a server


def test_running_and_queued_jobs_end_and_the_worker_stays(server):
    client, pids = server.client(), server.pids("i2v")
    jobs = client.server.jobs
    before = client.image_to_video(stages.picture((64, 64)), num_frames=2, num_inference_steps=1, seed=3).data
    running = HeldClip(client, "first")
    queued = HeldClip(client, "second", begins=False)
    until(lambda: {job.id: job.state for job in jobs.listed()} == {"first": "running", "second": "queued"})
    jobs.cancel("second")
    jobs.cancel("first")
    assert isinstance(running.end(), errors.Cancelled)
    assert isinstance(queued.end(), errors.Cancelled)
    assert not queued.begun.is_set()
    assert jobs.listed() == []
    assert client.image_to_video(stages.picture((64, 64)), num_frames=2, num_inference_steps=1, seed=3).data == before
    assert server.pids("i2v") == pids


def test_the_command_line_shows_a_job_and_cancels_it(server, tmp_path):
    held = HeldClip(server.client(), "shown")
    shown = cloudvid("ps", cwd=tmp_path, environment=server.environment)
    assert re.search(r"^shown +i2v +running +", shown.stdout, re.MULTILINE)
    assert cloudvid("cancel", "shown", cwd=tmp_path, environment=server.environment).stdout == "shown: cancelled\n"
    assert isinstance(held.end(), errors.Cancelled)
    later = cloudvid("cancel", "shown", cwd=tmp_path, environment=server.environment)
    assert later.stdout == "shown: not known; if it arrives within a day, it is not carried out\n"
    assert later.returncode == 1
    assert isinstance(HeldClip(server.client(), "shown", begins=False).end(), errors.Cancelled)
    refused = cloudvid("cancel", "../shown", cwd=tmp_path, environment=server.environment)
    assert refused.returncode == 2


def test_a_busy_worker_is_described_and_its_pace_known(server, tmp_path):
    client = server.client()
    client.image_to_video(stages.picture((64, 64)), num_frames=2, num_inference_steps=1, seed=3)
    held = HeldClip(client, "busy")
    seen = client.status(Stage.I2V)
    assert seen.busy
    assert seen.description.model.startswith("cloudvid-tiny-i2v@")
    assert seen.description.seconds.keys() == {"denoise", "decode"}
    client.server.jobs.cancel("busy")
    held.end()
    assert not client.status(Stage.I2V).busy


def test_jobs_take_the_inference_key(server):
    url = f"http://127.0.0.1:{server.process.port + EXPORTER}/jobs"
    for headers in ({}, {"Authorization": "Bearer other"}):
        assert requests.get(url, headers=headers, timeout=10).status_code == 401
        assert requests.delete(f"{url}/a", headers=headers, timeout=10).status_code == 401
    good = {"Authorization": f"Bearer {server.key('inference')}"}
    assert requests.get(url, headers=good, timeout=10).json() == {"jobs": []}
    assert requests.put(f"{url}/a", headers=good, timeout=10).status_code == 422
    assert requests.post(url, headers=good, timeout=10).status_code == 501
    assert requests.delete(f"{url}?prefix=../", headers=good, timeout=10).status_code == 422


def test_a_wrong_job_id_is_refused_by_name(server):
    answer = requests.post(
        f"{server.url}/predictions/t2i",
        json={"prompt": "a lamp"},
        headers={"Authorization": f"Bearer {server.key('inference')}", "CloudVid-Job": "../up"},
        timeout=60,
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == "CloudVid-Job"


# --- a run


@contextmanager
def interrupted_run(server, folder, number, *options):
    """A run that got a signal while its clip was being made, and the ids of the jobs that it had."""
    long = {"num_inference_steps": 400, "num_frames": 4}
    small = {"width": 128, "height": 128, "num_inference_steps": 2}
    scene = {"id": "film", "scene_desc": "a lamp", "t2i_params": small, "i2v_params": long}
    (folder / "scenes.json").write_text(json.dumps([scene]))
    arguments = ["run", folder / "scenes.json", "--output-dir", folder / "out", *options]
    jobs = server.client().server.jobs
    with subprocess.Popen(command(*arguments), env=environment(**server.environment), stderr=subprocess.PIPE) as run:
        until(lambda: [job for job in jobs.listed() if job.stage == "i2v" and job.state == "running"])
        had = [job.id for job in jobs.listed()]
        run.send_signal(number)
        run.stderr.read()
        run.wait(60)
        yield run, had
    jobs.cancel_before(had[0].rpartition(".")[0])
    until(lambda: not jobs.listed())


def test_an_interrupted_run_leaves_nothing_behind(server, tmp_path):
    pids = server.pids("i2v")
    with interrupted_run(server, tmp_path, signal.SIGINT) as (run, had):
        assert run.returncode == 130
        assert all(job.endswith(".film") for job in had)
        until(lambda: not server.client().server.jobs.listed(), seconds=10)
    assert server.pids("i2v") == pids


def test_an_interrupted_run_can_leave_its_jobs_running(server, tmp_path):
    with interrupted_run(server, tmp_path, signal.SIGTERM, "--leave-running") as (run, had):
        assert run.returncode == 130
        assert [job.id for job in server.client().server.jobs.listed()] == had


def test_a_run_cancels_what_a_killed_one_left_behind(server, tmp_path):
    with interrupted_run(server, tmp_path, signal.SIGKILL) as (_, had):
        jobs = server.client().server.jobs
        assert [job.id for job in jobs.listed()] == had
        folder = tmp_path / "out"
        scene = {"id": "film", "scene_desc": "a lamp", "i2v_params": {"num_frames": 2, "num_inference_steps": 1}}
        scene["t2i_params"] = {"width": 128, "height": 128, "num_inference_steps": 2}
        last = list(render(parse_scenes([scene]), server.client(), folder))[-1]
        assert (last.done, last.failed) == (1, 0)
        assert jobs.listed() == []


def test_a_cancelled_scene_is_no_failure_and_stays_on_record(server, tmp_path):
    scene = {"id": "film", "scene_desc": "a lamp", "i2v_params": {"num_frames": 4, "num_inference_steps": 400}}
    scene["t2i_params"] = {"width": 128, "height": 128, "num_inference_steps": 2}
    client, seen = server.client(), []
    for event in render(parse_scenes([scene]), server.client(), tmp_path):
        seen.append(event)
        if isinstance(event, StageProgress) and event.stage == "i2v" and event.step == 1:
            (job,) = client.server.jobs.listed(Stage.I2V)
            client.server.jobs.cancel(job.id)
    assert isinstance(seen[-2], SceneCancelled)
    assert (seen[-1].cancelled, seen[-1].failed, seen[-1].requests) == (1, 0, 2)
    (record,) = map(json.loads, (tmp_path / "manifest.jsonl").read_text().splitlines())
    text = "i2v answers 409 Cancelled: the job was cancelled"
    assert record["failure"] == {"stage": "i2v", "error": "Cancelled", "message": text}
    assert "1 cancelled" in (tmp_path / "index.html").read_text()
    scene["i2v_params"]["num_inference_steps"] = 1
    list(render(parse_scenes([scene]), client, tmp_path))
    (record,) = map(json.loads, (tmp_path / "manifest.jsonl").read_text().splitlines())
    assert "failure" not in record

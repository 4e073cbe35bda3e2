"""doctor: its checks of ports, key and endpoints, and the command."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from cloudvid import Client
from cloudvid.server import doctor
from cloudvid.server.doctor import CHECKS, Finding, examine
from deploy import doctor as machine
from support import ROOT
from support.command_line import cloudvid
from support.fake_management import Fake, worker
from support.fake_server import Answer, error, fake_server
from support.loopback import client_of, closed_port, free_port
from support.places import GIB, levels, place


def test_python_that_is_too_old_is_a_problem(tmp_path, monkeypatch):
    assert levels(doctor.python(place(tmp_path))) == ["ok"]
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 10, 2)))
    assert levels(doctor.python(place(tmp_path))) == ["problem"]


def test_room_is_looked_for_where_outputs_go(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for free, level in ((100 * GIB, "ok"), (5 * 10**8, "note"), (10**7, "problem")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert levels(doctor.disk(place(tmp_path))) == [level]
    (finding,) = doctor.disk(place(tmp_path, output_dir=tmp_path / "file/out"))
    assert (finding.level, "not a folder" in finding.found) == ("problem", True)


def test_a_checkout_adds_its_own_findings(tmp_path, monkeypatch):
    asked = []

    def run(command, cwd, **_):
        asked.append((command[1:], cwd))
        code, text = answers.pop()
        return SimpleNamespace(returncode=code, stdout="" if code else text, stderr=text if code else "")

    monkeypatch.setattr(doctor.subprocess, "run", run)
    here = place(tmp_path)
    assert list(doctor.checkout(here)) == [], "no checkout"
    assert asked == []
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/doctor.py").write_text("")
    answers = [(1, "Traceback\nImportError: torch\n"), (0, '[{"check": "java", "level": "ok", "found": "17"}]')]
    assert list(doctor.checkout(here)) == [Finding(check="java", level="ok", found="17")]
    (failed,) = doctor.checkout(here)
    assert (failed.level, "ImportError: torch" in failed.found) == ("problem", True)
    assert asked == [(["-m", "deploy.doctor"], tmp_path)] * 2


def test_ports_are_free_or_the_servers_or_somebody_elses(tmp_path):
    port = free_port()
    here = place(tmp_path, url=f"http://127.0.0.1:{port}")
    assert levels(doctor.ports(here)) == ["ok"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", port + 2))
        other.listen()
        (finding,) = doctor.ports(here)
        assert (finding.level, finding.found) == ("problem", f"another program uses port {port + 2}")
        assert "PORT=" in finding.remedy
        (tmp_path / ".run").mkdir()
        (tmp_path / ".run/server.json").write_text(json.dumps({"pid": os.getpid(), "port": port}))
        assert levels(doctor.ports(here)) == ["ok"]
    with fake_server(Fake()) as fake:
        assert levels(doctor.ports(place(tmp_path, url=fake.url))) == ["ok"]
    with fake_server(lambda seen: Answer(404)) as fake:
        assert levels(doctor.ports(place(tmp_path, url=fake.url))) == ["problem"]
    assert list(doctor.ports(place(tmp_path, url="http://gpu.example:8080"))) == [], "not this machine's"


def key_file(path, expires, mode=0o600):
    times = {
        name: {"key": "k", "expiration time": f"{expires:%Y-%m-%dT%H:%M:%S}.123456789Z"}
        for name in ("inference", "management")
    }
    path.write_text(json.dumps(times | {"API": {"key": "k"}}))
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("hours", "mode", "expected", "words"),
    [
        (24, 0o600, ["ok"], "readable by its owner only"),
        (24, 0o644, ["problem"], "can be read by others (mode 0644)"),
        (0.49, 0o600, ["note"], "expire in 29 minutes"),
        (-1, 0o600, ["problem"], "have expired"),
    ],
)
def test_the_key_file_is_the_owners_alone_and_lasts(hours, mode, expected, words, tmp_path):
    path = key_file(tmp_path / "key_file.json", datetime.now(UTC) + timedelta(hours=hours), mode)
    findings = list(doctor.key(place(tmp_path, client=Client("http://gpu:8080", key_file=path))))
    assert levels(findings) == expected
    assert words in findings[0].found
    assert "k" not in findings[0].found.split(), "no key is shown"


def test_bad_key_files_are_problems_and_missing_keys_notes(tmp_path):
    path = tmp_path / "key_file.json"
    assert levels(doctor.key(place(tmp_path, client=Client("http://gpu:8080", key_file=path)))) == ["problem"]
    path.write_text("[]")
    assert levels(doctor.key(place(tmp_path, client=Client("http://gpu:8080", key_file=path)))) == ["problem"]
    assert levels(doctor.key(place(tmp_path, client=Client("http://gpu:8080")))) == ["note"]
    assert levels(doctor.key(place(tmp_path, client=Client("http://gpu:8080", token="t")))) == ["ok"]


def at(fake, tmp_path):
    return place(tmp_path, client=client_of(fake))


def said(findings):
    return [(finding.check, finding.level, finding.unavailable) for finding in findings]


def test_the_endpoints_are_asked_as_a_client_would(tmp_path):
    fake = Fake()
    with fake_server(fake) as running:
        findings = list(doctor.endpoints(at(running, tmp_path)))
        assert said(findings) == [("server", "ok", False), ("endpoints", "ok", False), ("endpoints", "ok", False)]
        assert findings[1].found == "t2i: 1 of 1 worker ready, 0 requests waiting, model@1234567890abcdef"
        fake.version = "9.9"
        assert "archive has version 9.9" in list(doctor.endpoints(at(running, tmp_path)))[-1].found
        fake.version = "0.1.0"
        fake.workers["t2i"], fake.workers["i2v"] = [], [worker(9001, "UNLOADING")]
        findings = list(doctor.endpoints(at(running, tmp_path)))
        assert said(findings) == [
            ("server", "ok", False),
            ("endpoints", "problem", True),
            ("endpoints", "problem", True),
        ]
        assert "`cloudvid scale t2i 1`" in findings[1].remedy
        assert "`cloudvid wait`" in findings[2].remedy
        fake.workers, fake.ping = {"t2i": [worker(9000), worker(9002, "UNLOADING")], "i2v": [worker(9001)]}, 500
        findings = list(doctor.endpoints(at(running, tmp_path)))
        assert ("endpoints", "problem", False) in said(findings)
        assert sum("given up a worker" in finding.found for finding in findings) == 1
        del fake.workers["i2v"]
        assert "--i2v-url" in list(doctor.endpoints(at(running, tmp_path)))[-1].remedy


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (
            error(400, "InvalidKeyException", "Token Authorization failed."),
            ("server", "problem", True),
            "refuses the given token",
        ),
        (Answer(404), ("server", "problem", True), "/ping answers 404"),
    ],
)
def test_a_foreign_or_refusing_server_is_a_problem(answer, expected, words, tmp_path):
    with fake_server(lambda seen: answer) as fake:
        findings = list(doctor.endpoints(at(fake, tmp_path)))
    assert said(findings) == [expected], "said once, not once a stage"
    assert words in findings[0].found


def test_a_server_that_is_not_there_or_hides_its_workers(tmp_path):
    away = Client(f"http://127.0.0.1:{closed_port()}", token="t")
    (finding,) = {finding.found: finding for finding in doctor.endpoints(place(tmp_path, client=away))}.values()
    assert (finding.level, finding.unavailable, "make start" in finding.remedy) == ("problem", True, True)
    with fake_server(lambda seen: Answer()) as proxy:
        hidden = Client(proxy.url, management=f"http://127.0.0.1:{closed_port()}", token="t")
        findings = list(doctor.endpoints(place(tmp_path, client=hidden)))
    assert said(findings) == [("server", "ok", False), ("endpoints", "note", False), ("endpoints", "note", False)]


def test_behind_a_proxy_its_ready_tells_of_the_workers(tmp_path):
    counts = {"t2i": {"READY": 1}, "i2v": {}}

    def answer(seen):
        stage = seen.path.partition("?stage=")[2]
        told = {"stages": {stage: {"workers": {"READY": 0} | counts[stage], "pending_requests": 0}}}
        return Answer(200, json.dumps(told).encode()) if seen.path.startswith("/ready") else Answer()

    with fake_server(answer) as proxy:
        client = Client(proxy.url, management=f"http://127.0.0.1:{closed_port()}", token="t")
        findings = list(doctor.endpoints(place(tmp_path, client=client)))
    assert said(findings) == [("server", "ok", False), ("endpoints", "ok", False), ("endpoints", "problem", True)]
    assert "scale i2v 1" in findings[2].remedy


def test_a_failing_check_is_a_finding_and_stops_no_other(tmp_path):
    def broken(place):
        raise OSError("no such luck")

    findings = list(examine((broken, doctor.python), place(tmp_path)))
    assert [(finding.check, finding.level) for finding in findings] == [("broken", "problem"), ("python", "ok")]
    every = [check.__name__ for check in (*CHECKS, *machine.CHECKS)]
    assert len(set(every)) == len(every) - 1 == 14, "both look at disks"


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([("ok", False), ("note", False)], 0),
        ([("problem", False), ("ok", False)], 1),
        ([("problem", True), ("problem", False)], 3),
    ],
)
def test_the_exit_code_says_whether_the_server_takes_requests(findings, code):
    from cloudvid.cli.server import exit_code

    made = [Finding(check="c", level=level, found="f", unavailable=unavailable) for level, unavailable in findings]
    assert exit_code(made) == code


def checkout(folder):
    """Make a folder look like this repository."""
    for name in ("client", "deploy", "handlers"):
        (folder / name).symlink_to(ROOT / name)


def test_doctor_without_a_server_names_the_remedy(tmp_path):
    checkout(tmp_path)
    url = f"http://127.0.0.1:{closed_port()}"
    done = cloudvid("doctor", "--server", url, cwd=tmp_path)
    document = cloudvid("doctor", "--server", url, "--json", cwd=tmp_path)
    assert done.returncode == document.returncode == 3, done.stderr
    assert f"problem  server: nothing answers at {url}/ping: Connection refused\n         -> start it" in done.stdout
    assert "problem" in done.stdout.splitlines()[-1]
    findings = [Finding(**finding) for finding in json.loads(document.stdout)["findings"]]
    assert {finding.check for finding in findings} >= {
        "python",
        "java",
        "torch",
        "driver",
        "disk",
        "ffmpeg",
        "key",
        "server",
    }


def test_doctor_finds_no_problem_with_a_server_that_runs(server, tmp_path):
    checkout(tmp_path)
    (tmp_path / ".run").symlink_to(server.process.run_dir)
    done = cloudvid("doctor", "--json", cwd=tmp_path)
    findings = json.loads(done.stdout)["findings"]
    assert [finding for finding in findings if finding["level"] == "problem"] == []
    assert done.returncode == 0
    by_check = {finding["check"]: finding["found"] for finding in findings if finding["level"] == "ok"}
    assert (
        f"ports {server.process.port} to {server.process.port + 5} belong to the server of this folder"
        in by_check["ports"]
    )
    assert "1 of 1 worker ready" in by_check["endpoints"]
    assert "readable by its owner only" in by_check["key"]
    assert by_check["java"].startswith("Java ")
    assert by_check["ffmpeg"].startswith("ffmpeg version")

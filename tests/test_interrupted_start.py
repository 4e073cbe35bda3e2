"""`deploy/server.py` that is interrupted, once or again: the server it started is stopped, in full."""

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from cloudvid_schema.processes import _AGAIN_SECONDS
from deploy import DeployError
from deploy import server as command


class Spawned:
    """A server that is only told of: each call is kept, and one of them is interrupted."""

    url, port, log = "http://127.0.0.1:8080", 8080, "server.log"

    def __init__(self, run_dir, interrupted=(), sign=signal.SIGINT, code=None, slow=()):
        self.run_dir, self.calls, self._interrupted, self._sign = run_dir, [], interrupted, sign
        self._slow = slow
        self._process = SimpleNamespace(poll=lambda: code, returncode=code, wait=lambda: self._call("wait") or 0)

    def _call(self, name):
        self.calls.append(name)
        if name in self._interrupted:
            signal.raise_signal(self._sign)
        if name in self._slow:
            time.sleep(_AGAIN_SECONDS + 0.2)
        self.calls.append(f"{name} ended")

    def spawn(self, model_store, foreground=False):
        self._call("spawn")
        return self._process

    def listens(self):
        self._call("listens")
        return True

    def stop(self):
        self._call("stop")
        return True

    def last_words(self, code):
        return f"ended with {code}"


@pytest.fixture
def main(monkeypatch, tmp_path):
    """Runs the command with a server of this kind; its exit code, and the server."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(command, "RUN_DIR", tmp_path)
    monkeypatch.setattr(command, "choose_models", lambda profile, stages: {})

    def run(action, command_line=(), **options):
        spawned = Spawned(tmp_path / "run", **options)
        spawned.run_dir.mkdir(exist_ok=True)
        monkeypatch.setattr(command, "Server", lambda *_: spawned)
        monkeypatch.setattr(sys, "argv", ["server.py", action, "--run-dir", str(spawned.run_dir), *command_line])
        return command.main(), spawned.calls

    yield run
    for sign, handler in before.items():
        signal.signal(sign, handler)


def whole(*names):
    return [call for name in names for call in (name, f"{name} ended")]


def test_a_start_says_where_the_server_listens(main, capsys):
    assert main("start") == (0, whole("spawn", "listens"))
    assert capsys.readouterr().out.startswith("server on http://127.0.0.1:8080, log server.log")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_start_leaves_no_server(main, sign):
    code, calls = main("start", interrupted=("listens",), sign=sign)
    assert code == 130
    assert calls == [*whole("spawn"), "listens", *whole("stop")]


def test_a_server_that_ends_while_it_starts_is_cleared_away(main, capsys):
    code, calls = main("start", code=7)
    assert (code, calls) == (3, whole("spawn", "stop"))
    assert capsys.readouterr().err == "error: ended with 7\n"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_interrupt_lets_the_stop_end(main, sign):
    code, calls = main("serve", interrupted=("wait", "stop"), sign=sign)
    assert code == 130
    assert calls == [*whole("spawn"), "wait", *whole("stop")]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_client_lets_the_stop_take_its_time(main, sign, monkeypatch):
    """The interrupt was caught while the client ended; the stop takes longer than an interrupt waits to come again."""
    waits = iter([None, 0])

    def wait(timeout):
        if (code := next(waits)) is None:
            signal.raise_signal(sign)
        return code

    client = SimpleNamespace(wait=wait, send_signal=lambda number: None, kill=lambda: None, terminate=lambda: None)
    monkeypatch.setattr(command.subprocess, "Popen", lambda *_, **__: client)
    code, calls = main("with", ("--", "client"), sign=sign, slow=("stop",))
    assert code == 130
    assert calls[-2:] == whole("stop")


def test_a_server_that_was_not_started_is_not_stopped(main, monkeypatch):
    def refuse(self, model_store, foreground=False):
        raise DeployError("a server is already running")

    monkeypatch.setattr(Spawned, "spawn", refuse)
    assert main("serve") == (3, [])
    assert main("start") == (3, [])

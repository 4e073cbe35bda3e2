"""Who gets in: every route with every kind of key, at TorchServe itself and through the proxy, and every socket."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest
import requests

from deploy.torchserve import PORTS, Server
from support import ROOT
from support.exposure import REFUSED, ROUTES, check_logs, check_proxy, check_routes, keys_of, kind, send
from support.listening import OF_ANOTHER, await_listeners, listeners
from support.loopback import free_port
from support.proxies import needs_nginx, proxy, tokens_file
from support.servers import end
from support.waiting import until


class ShortLived(Server):
    """A server whose keys have expired when it writes them."""

    def _environment(self, java):
        return super()._environment(java) | {"TS_TOKEN_EXPIRATION_TIME_MIN": "0"}


def test_each_route_of_torchserve_opens_to_its_own_key_alone(server):
    check_routes(server)


@needs_nginx
def test_the_proxy_takes_callers_tokens_but_no_key_of_torchserve(server, tmp_path):
    check_proxy(server, tmp_path)


@pytest.mark.slow
def test_a_key_that_has_expired_opens_nothing(tmp_path, noise_store):
    server = ShortLived(tmp_path / "run", free_port())
    server.spawn(noise_store)
    try:
        until(server.listens)
        keys = keys_of(server)
        until(lambda: answers(server.port))
        for above, method, path, right, _ in ROUTES:
            answer = send(server.port + above, method, path, keys[right])
            assert (answer.status_code, kind(answer)) == (400, REFUSED), (method, path)
    finally:
        end(server)


def answers(port):
    with contextlib.suppress(requests.ConnectionError):
        return send(port, "GET", "/ping", None).status_code == 400
    return False


def test_the_server_listens_on_loopback_alone(server):
    await_listeners(server.process)


@pytest.mark.slow
def test_a_server_of_one_stage_listens_on_loopback_alone(tmp_path, tiny_models, noise_store):
    """Whatever addresses the user's shell holds for another TorchServe."""
    server = Server(tmp_path / "run", free_port())
    command = [sys.executable, "-m", "deploy.server", "serve", "--stage", "i2v", "--profile", "tiny"]
    command += ["--port", str(server.port), "--model-store", str(noise_store), "--run-dir", str(server.run_dir)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | OF_ANOTHER, stdout=subprocess.DEVNULL)
    try:
        await_listeners(server)
        other_stage = f"http://127.0.0.1:{server.port + PORTS - 1}/ready?stage=t2i"
        until(lambda: requests.get(other_stage, timeout=20).status_code == 404)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


@needs_nginx
@pytest.mark.parametrize("mode", ["a host", "a host, and inside", "a front"])
def test_the_proxy_listens_where_it_was_told_and_nowhere_else(mode, tmp_path):
    port, inside, other = free_port(), free_port(), free_port()
    options = ["--listen", f"0.0.0.0:{port}", "--insecure-http"]
    if mode == "a front":
        options += ["--host", f"http://127.0.0.1:{other}"]
    else:
        options += ["--t2i", f"127.0.0.1:{other}={tmp_path / 'key_file.json'}"]
    if "inside" in mode:
        options += ["--inside", f"127.0.0.1:{inside}"]
    with proxy(tokens_file(tmp_path), *options) as running:
        process = psutil.Process(running.process.pid)
        expected = {("0.0.0.0", port)} | ({("127.0.0.1", inside)} if "inside" in mode else set())
        assert listeners([process, *process.children(recursive=True)]) == expected


@needs_nginx
def test_neither_a_prompt_nor_a_token_is_written_down(server, tmp_path):
    check_logs(server, tmp_path)

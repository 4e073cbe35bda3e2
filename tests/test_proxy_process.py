"""`deploy/proxy.py` as a process: keys and tokens that change, TLS, signals, and what it refuses to start with."""

import datetime
import signal
import socketserver
import stat
import subprocess
import sys
import threading

import psutil
import pytest
import requests

from cloudvid import Client, Stage, Unreachable, Untrusted
from cloudvid_schema.key_file import read_keys
from deploy.renewal import Renewal, get
from deploy.torchserve import alive_after
from support import ROOT
from support.loopback import free_port, serving
from support.proxies import (
    BEARER,
    TOKEN,
    before,
    certificate,
    error_of,
    folder_of,
    key_file,
    listens,
    needs_nginx,
    proxy,
    recorder,
    reply,
    stub,
    tokens_file,
    two_parts,
)
from support.waiting import until

pytestmark = needs_nginx
T2I = "/predictions/t2i"


@pytest.fixture
def seen(tmp_path):
    with recorder(tmp_path) as running_and_seen:
        yield running_and_seen


def test_new_keys_are_picked_up_and_none_means_down(tmp_path):
    key = "first-key"

    def answer(handler, body):
        reply(handler, 200 if handler.headers["Authorization"] == f"Bearer {key}" else 400)

    with (
        stub(answer) as url,
        proxy(tokens_file(tmp_path), *before(url, tmp_path / "key_file.json", free_port())) as running,
    ):

        def status():
            return requests.post(running.url + T2I, headers=BEARER, timeout=20).status_code

        nothing = requests.post(running.url + T2I, headers=BEARER, timeout=20)
        assert error_of(nothing).type == "ServerUnavailable"
        assert requests.get(running.url + "/ping", headers=BEARER, timeout=20).status_code == 503
        key_file(tmp_path, key)
        until(lambda: status() == 200)
        key = "second-key"
        until(lambda: status() == 400)
        key_file(tmp_path, key)
        until(lambda: status() == 200)
        (tmp_path / "key_file.json").write_text('{"half')
        until(lambda: status() == 503)


def test_tokens_come_and_go_with_their_file(tmp_path, seen):
    running, _ = seen
    other = "another-token-of-some-length"

    def status(token, scheme="Bearer"):
        headers = {"Authorization": f"{scheme} {token}"}
        return requests.get(running.url + "/ping", headers=headers, timeout=20).status_code

    assert (status(TOKEN), status(TOKEN, "bearer"), status(other)) == (200, 200, 401)
    assert {status(TOKEN.upper()), status(TOKEN.replace(".", "x")), status(TOKEN[:-1]), status(f"{TOKEN}x")} == {401}
    tokens_file(tmp_path, other)
    until(lambda: status(other) == 200)
    until(lambda: status(TOKEN) == 401)
    (tmp_path / "tokens").write_text("short\n")
    running.await_line("what was known before stays in force")
    assert status(other) == 200


def test_a_reload_cuts_no_stream(tmp_path):
    with two_parts(tmp_path) as (running, lines, go_on):
        assert next(lines) == b"first"
        old = {child.pid for child in psutil.Process(running.process.pid).children(recursive=True)}
        tokens_file(tmp_path, "another-token-of-some-length")
        until(lambda: requests.get(running.url + "/x", headers=BEARER, timeout=20).status_code == 401)
        assert {child.pid for child in psutil.Process(running.process.pid).children(recursive=True)} - old
        go_on.set()
        assert next(lines) == b"second"


def test_sigterm_lets_a_running_request_end_and_leaves_nothing(tmp_path):
    began, may_end = threading.Event(), threading.Event()

    def answer(handler, body):
        began.set()
        assert may_end.wait(timeout=60)
        reply(handler, 200, b'"done"')

    answers = []
    with stub(answer) as url, proxy(tokens_file(tmp_path), *before(url, key_file(tmp_path), free_port())) as running:
        folder = folder_of(running)

        def ask():
            answers.append(requests.post(running.url + T2I, headers=BEARER, timeout=60).json())

        asking = threading.Thread(target=ask)
        asking.start()
        assert began.wait(timeout=30)
        running.process.send_signal(signal.SIGTERM)
        until(lambda: not listens(running.url))
        assert running.process.poll() is None
        may_end.set()
        asking.join(timeout=60)
        assert answers == ["done"]
        assert running.process.wait(timeout=30) == 0
        assert not folder.exists()


def test_secrets_are_in_no_public_file_or_command_line(seen):
    running, _ = seen
    processes = [psutil.Process(running.process.pid)]
    processes += processes[0].children(recursive=True)
    assert len(processes) == 4
    for process in processes:
        assert TOKEN not in " ".join(process.cmdline())
        assert "inference-key" not in " ".join(process.cmdline())
    folder = folder_of(running)
    for path in folder.iterdir():
        if path.is_file() and path.name != "nginx.conf":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert TOKEN.replace(".", "[.]").replace("+", "[+]") in (folder / "secrets.conf").read_text()


def test_tls_with_a_private_certificate_needs_that_certificate(tmp_path):
    files = certificate(tmp_path)
    with recorder(tmp_path, "--cert", str(files[0]), "--key", str(files[1])) as (running, seen):
        Client(running.url, token=TOKEN, ca=files[0]).check_ready(Stage.T2I)
        assert [path for _, path, _, _ in seen] == ["/ping?stage=t2i"]
        waits = []
        for url, why in (
            (running.url, "certificate is not trusted .*`ca`"),
            (running.url.replace("https", "http"), "400"),
        ):
            with pytest.raises(Unreachable, match=why):
                Client(url, token=TOKEN, sleep=waits.append).wait_until_ready(Stage.T2I, timeout=0)
        with pytest.raises(Untrusted):
            Client(running.url, token=TOKEN, sleep=waits.append).wait_until_ready(Stage.T2I, timeout=60)
        assert not waits, "no patience makes a certificate trusted"


def test_a_port_that_closes_may_belong_to_a_balancer():
    class Closing(socketserver.TCPServer):
        def process_request(self, request, client_address):
            request.close()

    with serving(Closing(("127.0.0.1", 0), None)) as server:
        client = Client(f"https://127.0.0.1:{server.server_address[1]}", token=TOKEN)
        with pytest.raises(Unreachable, match="TLS") as caught:
            client.check_ready(Stage.T2I)
    assert type(caught.value) is Unreachable


def test_nginx_ends_with_a_proxy_that_is_killed(tmp_path):
    with recorder(tmp_path) as (running, _):
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert children
        running.process.kill()
        assert not alive_after(children, 20)


def test_a_start_sweeps_what_a_killed_proxy_left(tmp_path):
    with recorder(tmp_path) as (first, _), recorder(tmp_path) as (second, _):
        left, kept = folder_of(first), folder_of(second)
        children = psutil.Process(first.process.pid).children(recursive=True)
        first.process.kill()
        assert not alive_after(children, 20)
        assert "secrets.conf" in {path.name for path in left.iterdir()}
        with recorder(tmp_path):
            assert not left.exists()
            assert requests.get(second.url + "/ping", headers=BEARER, timeout=20).status_code == 200
            assert kept.exists()
    assert not kept.exists()


def test_with_a_certificate_it_speaks_only_tls_and_reloads(tmp_path):
    files = certificate(tmp_path)
    options = ["--cert", str(files[0]), "--key", str(files[1])]
    with recorder(tmp_path, *options) as (running, seen):
        assert running.url.startswith("https://")
        url = running.url + "/ping"
        assert requests.get(url, headers=BEARER, verify=str(files[0]), timeout=20).status_code == 200
        plain = requests.get(url.replace("https:", "http:"), headers=BEARER, timeout=20)
        assert (error_of(plain).code, len(seen)) == (400, 1)
        assert "speaks HTTPS" in plain.text
        first = files[0].read_bytes()
        certificate(tmp_path)
        assert files[0].read_bytes() != first

        def is_new():
            try:
                return requests.get(url, headers=BEARER, verify=str(files[0]), timeout=20).status_code == 200
            except requests.exceptions.SSLError:
                return False

        until(is_new)


def run(*arguments, **environment):
    """Exit code and errors of a proxy that does not start."""
    command = [sys.executable, "-m", "deploy.proxy", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment or None, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def test_what_cannot_be_meant_is_refused_with_the_remedy(tmp_path):
    tokens = ["--tokens", str(tokens_file(tmp_path))]
    key = str(key_file(tmp_path))
    bad = tmp_path / "bad"
    bad.write_text(f"{TOKEN}\nshort\n")
    empty = tmp_path / "empty"
    empty.write_text("# none\n")
    cases = [
        ([], "--tokens FILE, or CLOUDVID_TOKENS_FILE"),
        (["--tokens", str(tmp_path / "no")], "no, one a line; `(umask 077; python3 -c 'import secrets;"),
        (["--tokens", str(bad)], "bad, line 2: a token must have 16 or more"),
        (["--tokens", str(empty)], "empty holds no token"),
        ([*tokens, "--listen", "0.0.0.0:8443"], "in the clear: give --cert and --key"),
        ([*tokens, "--listen", "here"], "'here' must be an IP address and a port"),
        ([*tokens, "--cert", key], "--cert and --key go together"),
        ([*tokens, "--t2i", "127.0.0.1:8080"], "must be ADDRESS=KEY_FILE"),
        ([*tokens, "--t2i", f"10.0.0.1:8080={key}"], "must be on this host's loopback"),
        (
            [*tokens, "--t2i", f"127.0.0.1:8080={key}", "--listen", "0.0.0.0:8081", "--insecure-http"],
            "TorchServe has the ports 8080 to 8085",
        ),
        ([*tokens, "--inside", "127.0.0.1:8443"], "--inside must have a port of its own"),
        ([*tokens, "--host", "http://10.0.0.1:8443"], "would send tokens and pictures in the clear"),
        ([*tokens, "--host", "https://10.0.0.1:1", "--host", "http://10.0.0.2:1"], "--host must be https://"),
        ([*tokens, "--host", "https://me:pw@10.0.0.1:1"], "--host must not contain a user name or password (@)\n"),
        ([*tokens, "--host", "https://10.0.0.1:1", "--inside", "127.0.0.1:1"], "--host goes without"),
    ]
    for arguments, message in cases:
        code, said = run(*arguments)
        assert (code, message in said) == (3, True), said


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path, seen):
    running, _ = seen
    listen = running.url.rpartition("/")[2]
    code, said = run("--tokens", str(tokens_file(tmp_path)), "--listen", listen)
    assert (code, f"{listen}: another program listens there already" in said) == (3, True), said


def test_keys_are_renewed_shortly_before_they_expire(server):
    """Against the real server; the rest of the tests read the key file again."""
    renewal = Renewal(server.process.port + 1, server.key_file)
    first = read_keys(server.key_file)
    for key in (first.inference, first.management, "wrong", None):
        assert get(server.process.port + 1, "/token?type=inference", key)[0] == 400
    now = first.expires - datetime.timedelta(hours=24)
    assert not renewal.renew(now)
    assert not renewal.renew(first.expires - datetime.timedelta(hours=2))
    assert read_keys(server.key_file) == first
    assert renewal.renew(first.expires - datetime.timedelta(hours=1))
    second = read_keys(server.key_file)
    assert {second.inference, second.management}.isdisjoint({first.inference, first.management})
    assert second.api == first.api
    for key, status in ((first.inference, 400), (second.inference, 200)):
        ping = requests.get(f"{server.url}/ping", headers={"Authorization": f"Bearer {key}"}, timeout=20)
        assert ping.status_code == status
    assert server.key_file.stat().st_mode & 0o077 == 0

"""The proxy before several hosts: each request to the host with the fewest, and only to hosts that can take it."""

import threading
from contextlib import ExitStack, contextmanager

import requests

from support.loopback import free_port
from support.proxies import BEARER, TOKEN, certificate, error_of, key_file, needs_nginx, proxy, reply, stub, tokens_file
from support.waiting import until

pytestmark = needs_nginx
T2I, I2V = "/predictions/t2i", "/predictions/i2v"


class Host:
    """Stands in for the proxy of one host."""

    def __init__(self):
        self.ready = {"t2i": 200, "i2v": 200}
        self.seen = []
        self.posts = 0
        self.asked = threading.Condition()
        self.held = None
        self.breaks_off = False

    def answer(self, handler, body):
        if handler.path.startswith("/ready?stage="):
            with self.asked:
                self.asked.notify_all()
            return reply(handler, self.ready[handler.path[-3:]])
        self.seen.append((handler.path, handler.headers["Authorization"], body))
        if handler.command == "POST":
            self.posts += 1
        if self.breaks_off:
            handler.close_connection = True
            return None
        if self.held:
            assert self.held.wait(timeout=60)
        return reply(handler, 200)


@contextmanager
def front(folder, count, **options):
    """A front before so many hosts."""
    hosts = [Host() for _ in range(count)]
    with ExitStack() as stack:
        urls = [stack.enter_context(stub(host.answer)) for host in hosts]
        arguments = [part for url in urls for part in ("--host", url)]
        listen = ["--listen", f"127.0.0.1:{free_port()}"]
        running = stack.enter_context(proxy(tokens_file(folder), *listen, *arguments))
        yield running, hosts


def test_every_host_is_told_to_cancel_a_job(tmp_path):
    """The front does not know which of them has it."""
    with front(tmp_path, 3) as (running, hosts):
        url = f"{running.url}/jobs/a.1?stage=t2i"
        assert requests.delete(url, headers=BEARER, timeout=60).status_code == 200
        told = ("/jobs/a.1?stage=t2i", BEARER["Authorization"], b"")
        until(lambda: all(told in host.seen for host in hosts))
        requests.put(url, headers=BEARER, timeout=60)
        requests.delete(f"{running.url}/jobs?stage=t2i&prefix=b.", headers=BEARER, timeout=60)
        until(lambda: all(host.seen[-1][0] == "/jobs?stage=t2i&prefix=b." for host in hosts))
        assert sum(host.seen.count(told) for host in hosts) == 5, "cancelled: the three, and once more; announced: one"


def post(running, path=T2I, body=b"{}"):
    return requests.post(running.url + path, headers=BEARER, data=body, timeout=60)


def spares(running, host, path=T2I):
    """Whether of six requests that are carried out none goes to this host."""
    before = host.posts
    return {post(running, path).status_code for _ in range(6)} == {200} and host.posts == before


def test_each_request_goes_to_the_host_with_the_fewest(tmp_path):
    """Strictly so, whichever of nginx's processes took it: seven that stay spread as 3, 2 and 2."""
    with front(tmp_path, 3) as (running, hosts):
        release = threading.Event()
        for host in hosts:
            host.held = release
        threads = []
        for count in range(1, 8):
            threads.append(threading.Thread(target=post, args=(running,)))
            threads[-1].start()
            until(lambda: sum(host.posts for host in hosts) == count)  # noqa: B023
        assert sorted(host.posts for host in hosts) == [2, 2, 3]
        release.set()
        for thread in threads:
            thread.join()


def test_a_request_arrives_unchanged_with_the_callers_token(tmp_path):
    with front(tmp_path, 1) as (running, hosts):
        assert post(running, f"{I2V}?fps=6&num_frames=2", b"picture").status_code == 200
        assert hosts[0].seen == [(f"{I2V}?fps=6&num_frames=2", f"Bearer {TOKEN}", b"picture")]
        assert requests.post(running.url + T2I, timeout=20).status_code == 401
        assert hosts[0].posts == 1


def test_a_host_gets_nothing_until_it_is_ready(tmp_path):
    with front(tmp_path, 2) as (running, (first, _)):
        first.ready["t2i"] = 503
        until(lambda: spares(running, first))
        assert not spares(running, first, I2V), "the other stage of that host is ready"
        first.ready["t2i"] = 200
        until(lambda: not spares(running, first))


def test_a_host_without_a_stage_is_never_asked_for_it(tmp_path):
    with front(tmp_path, 2) as (running, (first, second)):
        first.ready["i2v"], second.ready["i2v"] = 404, 503
        until(lambda: spares(running, first, I2V))
        assert requests.get(f"{running.url}/ready?stage=i2v", headers=BEARER, timeout=20).status_code == 503
        second.ready["i2v"] = 200
        until(lambda: requests.get(f"{running.url}/ready?stage=i2v", headers=BEARER, timeout=20).status_code == 200)


def test_a_host_that_is_gone_costs_no_request(tmp_path):
    with ExitStack() as stack:
        here, gone = Host(), f"http://127.0.0.1:{free_port()}"
        url = stack.enter_context(stub(here.answer))
        arguments = ["--listen", f"127.0.0.1:{free_port()}", "--host", gone, "--host", url]
        running = stack.enter_context(proxy(tokens_file(tmp_path), *arguments))
        assert {post(running).status_code for _ in range(5)} == {200}
        assert here.posts == 5
        ready = [requests.get(f"{running.url}/ready?stage=t2i", headers=BEARER, timeout=20) for _ in range(4)]
        assert {answer.status_code for answer in ready} == {200}


def test_a_request_that_reached_a_host_stays_there(tmp_path):
    with front(tmp_path, 2) as (running, hosts):
        for host in hosts:
            host.breaks_off = True
        assert error_of(post(running)).type == "ServerUnavailable"
        assert sum(host.posts for host in hosts) == 1


def test_hosts_are_asked_over_tls_and_verified(tmp_path):
    """A proxy before a stand-in for TorchServe, a front before that proxy, and one that trusts somebody else."""
    seen = []

    def torchserve(handler, body):
        seen.append(handler.headers["Authorization"])
        reply(handler, 200)

    certificate_file, key = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    stranger, _ = certificate(tmp_path / "other")
    tokens = tokens_file(tmp_path)
    with ExitStack() as stack:
        url = stack.enter_context(stub(torchserve))
        own = f"{url.removeprefix('http://')}={key_file(tmp_path)}"
        listen = ["--listen", f"127.0.0.1:{free_port()}"]
        tls = ["--cert", str(certificate_file), "--key", str(key)]
        host = stack.enter_context(proxy(tokens, *listen, *tls, "--t2i", own))
        listen = ["--listen", f"127.0.0.1:{free_port()}", "--host", host.url]
        trusting = stack.enter_context(proxy(tokens, *listen, "--ca", str(certificate_file)))
        assert post(trusting).status_code == 200
        assert seen == ["Bearer inference-key"]
        for wrong in (["--ca", str(stranger)], ["--ca", str(certificate_file), "--host-name", "another"], []):
            listen[1] = f"127.0.0.1:{free_port()}"
            refusing = stack.enter_context(proxy(tokens, *listen, *wrong))
            assert error_of(post(refusing)).code == 502
        assert len(seen) == 1

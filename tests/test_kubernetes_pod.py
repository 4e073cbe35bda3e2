"""A pod as its containers start it: the proxy with the pod's own arguments before a real server, and its probes."""

import socket
import subprocess
from pathlib import Path

import pytest
import requests

from deploy import container
from deploy.torchserve import PORTS
from support.loopback import free_port
from support.manifests import containers, stages
from support.proxies import BEARER, needs_nginx, proxy, tokens_file

PODS = {stage: containers(spec) for stage, _, spec in stages("base")}


def options(part: dict) -> dict[str, str]:
    """A container's arguments of the form --name=value."""
    pairs = [argument.partition("=") for argument in part["args"] if argument.startswith("--")]
    return {name: value for name, _, value in pairs}


def ports(part: dict) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in part["ports"]}


@pytest.mark.parametrize("stage", PODS)
def test_the_containers_agree_on_ports_and_the_key_file(stage):
    server, proxy = options(PODS[stage]["server"]), options(PODS[stage]["proxy"])
    listens = ports(PODS[stage]["proxy"])
    assert proxy["--listen"] == f"0.0.0.0:{listens['http']}"
    assert proxy["--inside"] == f"0.0.0.0:{listens['inside']}"
    first = int(server["--port"])
    assert not set(listens.values()) & set(range(first, first + PORTS)), "both are in the pod's one network"
    address, _, key_file = proxy[f"--{stage}"].partition("=")
    assert address == f"127.0.0.1:{first}"
    run = Path(key_file).parent
    for part in ("server", "proxy"):
        assert str(run) in {mount["mountPath"] for mount in PODS[stage][part]["volumeMounts"]}
    dockerfile = (Path(container.__file__).parent.parent / "Dockerfile").read_text()
    assert f"ln -s {run} /app/.run" in dockerfile, "where a container keeps its keys unless it is told otherwise"
    for part in ("server", "proxy"):
        assert PODS[stage][part]["args"][0] in container._ACTIONS


@pytest.mark.parametrize("stage", PODS)
def test_a_server_stops_once_nothing_is_connected_to_it(stage):
    """The preStop's own pattern, for a port that this test listens on."""
    script = PODS[stage]["server"]["lifecycle"]["preStop"]["exec"]["command"][2]
    first = int(options(PODS[stage]["server"])["--port"])
    assert f"0100007F:{first:04X} 01" in script
    check = script[script.index("grep") : script.index("; do")]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        mine = check.replace(f"{first:04X}", f"{listening.getsockname()[1]:04X}")
        assert subprocess.run(["sh", "-c", mine], check=False).returncode == 1
        with socket.create_connection(listening.getsockname()), listening.accept()[0]:
            assert subprocess.run(["sh", "-c", mine], check=False).returncode == 0
        assert subprocess.run(["sh", "-c", mine], check=False).returncode == 1


def test_a_pod_that_waits_for_weights_ends_when_told(tmp_path):
    command = PODS["t2i"]["await-weights"]["command"]
    script = command[2].replace("/app/models", str(tmp_path)).replace("until", "echo waiting; until")
    waiting = subprocess.Popen([*command[:2], script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert waiting.stdout.readline() == "waiting\n"
    waiting.terminate()
    assert waiting.wait(timeout=60) == 143
    (tmp_path / "fetched").touch()
    assert subprocess.run([*command[:2], script], timeout=60, check=False).returncode == 0


@needs_nginx
@pytest.mark.parametrize("stage", PODS)
def test_a_pods_proxy_answers_probes_and_serves_one_stage(stage, server, tmp_path):
    http, inside = free_port(), free_port()
    changed = {
        "--listen": f"127.0.0.1:{http}",
        "--inside": f"127.0.0.1:{inside}",
        f"--{stage}": f"127.0.0.1:{server.process.port}={server.key_file}",
    }
    arguments = [f"{name}={changed[name]}" if name in changed else name for name in options(PODS[stage]["proxy"])]
    with proxy(tokens_file(tmp_path), *arguments):
        paths = {name: probe["httpGet"]["path"] for name, probe in PODS[stage]["server"].items() if "Probe" in name}
        for path in (*paths.values(), "/metrics"):
            assert requests.get(f"http://127.0.0.1:{inside}{path}", timeout=30).status_code == 200, path
        beyond = f"http://127.0.0.1:{http}"
        for path in ("/live", "/metrics", "/models", f"/models/{stage}"):
            assert requests.get(f"{beyond}{path}", headers=BEARER, timeout=30).status_code == 404, path
            assert requests.get(f"http://127.0.0.1:{inside}/models/{stage}", timeout=30).status_code == 404
        for path in ("/ping", f"/ready?stage={stage}", f"/predictions/{stage}"):
            assert requests.get(f"{beyond}{path}", timeout=30).status_code == 401, path
        assert requests.get(f"{beyond}/ping", headers=BEARER, timeout=30).status_code == 200
        other = {"t2i": "i2v", "i2v": "t2i"}[stage]
        assert requests.post(f"{beyond}/predictions/{other}", headers=BEARER, json={}, timeout=30).status_code == 404
        assert requests.post(f"{beyond}/predictions/{stage}", headers=BEARER, json={}, timeout=30).status_code == 422

"""What the image is made of, and what compose makes of it. `deploy/test-image.sh` builds and runs it."""

import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from itertools import pairwise

import pytest
import yaml

from cloudvid.cli import app
from cloudvid_schema import __version__
from deploy import container, proxy
from deploy.torchserve import PORTS
from support import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
SCRIPT = (ROOT / "deploy/test-image.sh").read_text()
GUIDE = (ROOT / "docs/containers.md").read_text()


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments, of each line of the Dockerfile with what continues it."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, after those before the first one."""
    found = [[]]
    for instruction in instructions():
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def of(stage, name):
    return [arguments for instruction, arguments in stage if instruction == name]


def test_every_build_stage_begins_at_a_known_stage():
    before, *rest = stages()
    assert before == [("ARG", "BASE_IMAGE=python:3.11-slim-bookworm")]
    names = ["${BASE_IMAGE}"]
    for stage in rest:
        base, _, name = stage[0][1].partition(" AS ")
        assert base in names
        names.append(name)
    assert stage[0] == ("FROM", "${BASE_IMAGE}"), "what a build needs stays behind"


def test_the_image_runs_as_a_numbered_user_not_root():
    last = stages()[-1]
    assert of(last, "USER") == ["${UID}:${UID}"], "by number: Kubernetes can check that"
    assert int(of(last, "ARG")[0].removeprefix("UID=")) > 0
    instructions_after = [name for name, _ in last[last.index(("USER", "${UID}:${UID}")) :]]
    assert not {"RUN", "COPY", "ADD"} & set(instructions_after)
    assert not [mode for mode in re.findall(r"chmod (\S+)", TEXT) if "s" in mode]


def test_packages_come_only_from_pinned_lists_without_a_compiler():
    (pip,) = re.findall(r"pip --python.*? install (.*?) &&", " ".join(arguments for _, arguments in instructions()))
    words = [word for word in pip.split() if word not in ("--no-cache-dir", "--no-compile", "${PIP_EXTRA}")]
    assert words == ["-r", "/requirements/server.txt", "-r", "/requirements/java.txt"]
    for name in ("server", "java"):
        lines = (ROOT / f"requirements/{name}.txt").read_text().splitlines()
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines if not line.startswith("#"))
    (apt,) = re.findall(r"apt-get install -y --no-install-recommends ([\w -]+) &&", " ".join(of(stages()[-1], "RUN")))
    assert apt.split() == ["nginx", "tini"]
    assert TEXT.count("apt-get install") == 1


def test_no_secret_is_a_build_argument_or_variable():
    for name, arguments in instructions():
        if name in ("ARG", "ENV"):
            for variable in re.findall(r"(\w+)=", arguments):
                assert not re.search(r"TOKEN|KEY|SECRET|PASSWORD", variable) or variable == "HF_TOKEN_PATH"
    assert "--mount=type=secret,id=hf_token" in TEXT


def test_the_build_context_names_all_that_the_image_needs():
    assert next(line for line in IGNORED if line and line[0] != "#") == "*"
    allowed = [line[1:] for line in IGNORED if line.startswith("!")]
    for pattern in allowed:
        assert list(ROOT.glob(pattern)), pattern
    for name in (
        "config.properties",
        "deploy/container.py",
        "demo/tiny.py",
        "deploy/nginx.conf",
        "client/cloudvid",
        "handlers",
    ):
        assert any(fnmatch(name, pattern) for pattern in allowed), name
    for source in [word for stage in stages() for text in of(stage, "COPY") for word in text.split()[:-1]]:
        is_of_the_context = not source.startswith(("--", "/", "."))
        assert not is_of_the_context or source in allowed, source
    for secret in ("tokens", ".env", ".run", "models", "output", ".git", "hf_token", "deploy/kubernetes"):
        assert not any(fnmatch(secret, pattern) for pattern in allowed), secret


def test_entry_point_and_health_check_are_the_containers_own():
    last = stages()[-1]
    assert of(last, "ENTRYPOINT") == ['["/usr/bin/tini", "-s", "--", "cloudvid-container"]']
    assert '/opt/venv/bin/python -m deploy.container "$@"' in TEXT
    (check,) = of(last, "HEALTHCHECK")
    assert check.endswith('CMD ["cloudvid-container", "health"]')
    assert "health" in container._ACTIONS
    assert of(last, "EXPOSE") == ["8443"]


def test_the_interface_to_compose_is_one_port_on_loopback():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"network": ["127.0.0.1:${CLOUDVID_PORT:-8443}:8443"]}
    for name, service in SERVICES.items():
        assert service.get("network_mode") == (None if name == "network" else "service:network"), name
        assert "networks" not in service
        assert not service.get("privileged")


def test_every_service_runs_this_version_without_new_rights():
    for name, service in SERVICES.items():
        assert service["image"] == f"cloudvid:{__version__}", name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
    assert re.findall(r"cloudvid:([\d.]+)", GUIDE) == [__version__]


def test_each_profile_has_both_stages_and_only_one_takes_gpus():
    by_profile = {}
    for name, service in SERVICES.items():
        for profile in service.get("profiles", ["every"]):
            by_profile.setdefault(profile, []).append(name)
    assert by_profile == {"every": ["network", "proxy"], "cpu": ["t2i", "i2v"], "gpu": ["t2i-gpu", "i2v-gpu"]}
    for stage in ("t2i", "i2v"):
        gpu = dict(SERVICES[f"{stage}-gpu"])
        (device,) = gpu.pop("deploy")["resources"]["reservations"]["devices"]
        expected = {"driver": "nvidia", "device_ids": [f"${{{stage.upper()}_GPU:-0}}"], "capabilities": ["gpu"]}
        assert device == expected
        assert gpu | {"profiles": ["cpu"]} == SERVICES[stage], "else they are alike"


def server_of(stage):
    """Port, run folder and environment of a stage's service."""
    action, served, *options = SERVICES[stage]["command"]
    assert (action, served) == ("serve", stage)
    given = dict(zip(options[::2], options[1::2], strict=True))
    environment = dict(line.partition("=")[::2] for line in SERVICES[stage]["environment"])
    return int(given.get("--port", 8080)), given["--run-dir"], environment


def test_the_servers_share_a_network_without_sharing_a_port():
    taken = [8443, 8444]
    for stage in ("t2i", "i2v"):
        port, run_dir, environment = server_of(stage)
        taken += range(port, port + PORTS)
        assert environment["CLOUDVID_KEY_FILE"] == f"{run_dir}/key_file.json"
        assert environment.get("CLOUDVID_SERVER", "http://127.0.0.1:8080") == f"http://127.0.0.1:{port}"
        assert environment.get("CLOUDVID_MANAGEMENT", "http://127.0.0.1:8081") == f"http://127.0.0.1:{port + 1}"
    assert len(taken) == len(set(taken))


def test_only_a_server_and_its_proxy_see_its_keys():
    for stage in ("t2i", "i2v"):
        _, run_dir, _ = server_of(stage)
        assert COMPOSE["volumes"][stage]["driver_opts"]["type"] == "tmpfs"
        mounts = {
            name: mount
            for name, service in SERVICES.items()
            for mount in service.get("volumes", ())
            if mount.startswith(f"{stage}:")
        }
        assert mounts == {
            "proxy": f"{stage}:{run_dir}:ro",
            stage: f"{stage}:{run_dir}",
            f"{stage}-gpu": f"{stage}:{run_dir}",
        }


def understood(command, monkeypatch, tmp_path):
    """The addresses of the stages, by the proxy's own reading of its arguments."""
    assert command[0] == "proxy"
    for name in ("certificate", "certificate_key", "tokens"):
        (tmp_path / name).write_text("")
    arguments = [word.replace("/run/secrets", str(tmp_path)) for word in command[1:]]
    seen = []
    monkeypatch.setattr(proxy.Proxy, "run", lambda self: seen.append(str(self.upstream)) or 0)
    monkeypatch.setattr(sys, "argv", ["proxy.py", "--listen", "0.0.0.0:8443", *arguments])
    monkeypatch.setenv("CLOUDVID_TOKENS_FILE", str(tmp_path / "tokens"))
    assert proxy.main() == 0
    return seen[0]


def test_the_proxy_stands_before_both_servers_and_reads_their_keys(monkeypatch, tmp_path):
    command = SERVICES["proxy"]["command"]
    ports = {stage: server_of(stage)[0] for stage in ("t2i", "i2v")}
    told = ", ".join(f"{stage} on 127.0.0.1:{port}" for stage, port in ports.items())
    assert understood(command, monkeypatch, tmp_path) == told
    for stage, port in ports.items():
        assert f"--{stage}=127.0.0.1:{port}={server_of(stage)[1]}/key_file.json" in command
    assert SERVICES["proxy"]["environment"] == ["CLOUDVID_TOKENS_FILE=/run/secrets/tokens"]
    assert SERVICES["proxy"]["secrets"] == list(COMPOSE["secrets"]) == ["tokens"]


def test_services_are_healthy_once_workers_are_ready():
    (inside,) = [word.partition("=")[2] for word in SERVICES["proxy"]["command"] if word.startswith("--inside=")]
    urls = [f"http://{inside}/ready?stage={stage}" for stage in ("t2i", "i2v")]
    assert SERVICES["proxy"]["healthcheck"]["test"] == ["CMD", "cloudvid-container", "health", *urls]
    assert SERVICES["network"]["healthcheck"] == {"disable": True}
    for stage in ("t2i", "i2v"):
        assert "healthcheck" not in SERVICES[stage], "the image's own"


def test_the_guides_addition_for_tls_differs_in_tls_alone(monkeypatch, tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    addition = yaml.safe_load(text)
    plain, tls = SERVICES["proxy"]["command"], addition["services"]["proxy"]["command"]
    assert set(plain) - set(tls) == {"--insecure-http"}
    files = {word.partition("=")[2] for word in set(tls) - set(plain)}
    assert files == {f"/run/secrets/{name}" for name in addition["secrets"]}
    assert addition["services"]["proxy"]["secrets"] == list(addition["secrets"])
    assert understood(tls, monkeypatch, tmp_path) == understood(plain, monkeypatch, tmp_path)


def documented():
    """The commands of the guide, as words."""
    blocks = re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    return [shlex.split(line[2:]) for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("words", [words for words in documented() if words[:2] == ["docker", "run"]], ids=" ".join)
def test_the_script_tries_each_documented_run_of_the_image(words):
    at = words.index("cloudvid")
    action = next(iter(words[at + 1 :]), "")
    commands = {command.name for command in app.registered_commands}
    assert action in {"", *container._ACTIONS, *commands} or action.startswith("--")
    assert re.search(rf"^ *(expect \d )?(run|begin) .*-- *({re.escape(action)}.*)?$", SCRIPT, re.MULTILINE)
    mounted = [value.partition(":")[2] for flag, value in pairwise(words[:at]) if flag == "-v"]
    created = re.findall(r"install -d .*? (/.*?) \\", TEXT)[0].split()
    assert set(mounted) <= set(created)
    for folder in mounted:
        assert f":{folder}$z" in SCRIPT, folder


def test_every_other_documented_command_is_in_the_script():
    arguments = {word.split("=")[0] for name, word in instructions() if name == "ARG"}
    for words in documented():
        if words[:2] == ["docker", "build"]:
            assert {words[i + 1].split("=")[0] for i, word in enumerate(words) if word == "--build-arg"} <= arguments
        elif words[:2] == ["docker", "compose"]:
            rest = [word for word in words[2:] if word not in ("-f", "compose.yaml", "compose.tls.yaml")]
            rest = rest[2:] if rest[0] == "--profile" else rest
            assert re.search(rf"\$compose (--profile cpu )?{rest[0]} ", SCRIPT), words
            assert rest[0] != "exec" or rest[1] in SERVICES
        elif words[:2] == ["docker", "exec"]:
            assert f"inside server {' '.join(words[3:])}" in SCRIPT, words
        elif words[:2] == ["docker", "stop"]:
            assert f"end {words[2]} " in SCRIPT
        elif words[0] == "deploy/test-image.sh":
            assert all((ROOT / word).exists() for word in words)
        elif words[0] not in ("docker", "openssl"):
            assert words[0].startswith("CLOUDVID_TOKEN="), words
    for name in re.findall(r"--build-arg (\w+)=`", GUIDE):
        assert name in arguments
    for command in re.findall(r"`docker compose (.*?)`", GUIDE):
        verb = next(word for word in command.split() if word not in ("--profile", "cpu", "gpu"))
        assert f"{verb} " in SCRIPT


def test_the_script_is_sound_bash():
    script = ROOT / "deploy/test-image.sh"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0

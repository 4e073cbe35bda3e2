"""What a scene's id can do, where a key goes, what a terminal obeys, and files that were tampered with: checks that draw
their hostile inputs, each in a folder that it may fill. They return what they tried, counted.
"""

import json
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cloudvid import Client, InvalidSceneFile, parse_scenes
from cloudvid.endpoints import errors
from cloudvid_schema.protocol import NDJSON
from cloudvid_stages.digests import check_list, files_of
from cloudvid_stages.settings import SettingsError
from deploy import DeployError
from deploy.torchserve import Server
from support.changed_archives import build
from support.command_line import cloudvid, command, run
from support.fake_server import Answer, Seen, event_lines, fake_server, file_answer
from support.folders import write_scenes
from support.hostile_ids import hostile_ids
from support.loopback import connection, free_port
from support.servers import tiny_models

_IDS = 600
_FLIPS = 20
_EVIL = "\x1b]0;owned\x07\x1b[2J\r\nscene s0: done\u202e\x00"


def _check_ids(draw: random.Random, folder: Path) -> Counter[str]:
    """Six hundred ids in one file, and each by itself: refused, by place, before anything is sent or written."""
    names = draw.sample(hostile_ids(), _IDS)
    for name in names:
        with pytest.raises(InvalidSceneFile) as raised:
            parse_scenes([{"id": name, "scene_desc": "a"}])
        assert {fault.place for fault in raised.value.faults} == {"scenes[0].id"}, f"{name!r}: {raised.value}"
    path, output = folder / "scenes.json", folder / "out"
    path.write_text(json.dumps([{"id": name, "scene_desc": "a"} for name in names]))
    with fake_server(lambda seen: Answer()) as server:
        done = cloudvid("run", path, "--output-dir", output, *connection(server), cwd=folder)
        assert (done.returncode, server.seen) == (2, []), f"{done.returncode}: {done.stderr[-500:]}"
    assert not output.exists(), "a folder was made"
    _check_plain("run", done)
    printed = done.stdout + done.stderr
    assert all(f"scenes[{index}].id: " in printed for index in range(_IDS)), "an id is not named"
    return Counter({"hostile ids": _IDS})


def _check_plain(what: str, done: "subprocess.CompletedProcess[str]") -> None:
    """Nothing that a terminal would obey, and no line that is not the command's own."""
    printed = done.stdout + done.stderr
    harmful = {letter for letter in printed if not letter.isprintable() and letter != "\n"}
    assert not harmful, f"{what}: printed {harmful}: {printed[-500:]!r}"
    assert "Traceback" not in printed, f"{what}: {printed[-2000:]}"
    assert "\nscene s0: done" not in printed, f"{what}: printed a foreign line: {printed[-500:]!r}"


def _always(answer: Answer) -> Callable[[Seen], Answer]:
    return lambda seen: answer


def _check_redirects(draw: random.Random, folder: Path) -> Counter[str]:
    """A redirect is an error: neither key nor picture goes to another host."""
    tried = Counter[str]()
    for status in (300, 301, 302, 303, 305, 307, 308):
        with fake_server(lambda seen: file_answer()) as other:
            moved = Answer(status, b"moved", {"Location": f"{other.url}/predictions/t2i"})
            with fake_server(_always(moved)) as server:
                client = Client(server.url, management=server.url, token="t")
                picture, clip = partial(client.text_to_image, "a"), partial(client.image_to_video, b"x")
                for ask in (picture, clip, client.check_ready):
                    with pytest.raises(errors.CloudVidError):
                        ask()
                    tried["redirects"] += 1
            assert other.seen == [], f"{status}: the other host was asked"
    return tried


def _check_archives(draw: random.Random, folder: Path) -> Counter[str]:
    """Archives of which a bit was changed, at any place, or whose list was: no server starts, and it is said why."""
    store = build(folder / "archives", lambda handlers: None)
    server = Server(folder / "run", free_port())
    for name in ("t2i.mar", "i2v.mar", "SHA256SUMS"):
        for _ in range(_FLIPS):
            with (
                _flipped(draw, store / name),
                pytest.raises(DeployError, match=r"\.mar has changed since it was built"),
            ):
                server.spawn(store)
    assert not server.run_dir.exists(), "a refused server leaves a folder"
    return Counter({"tampered archives": 3 * _FLIPS})


def _check_weights(draw: random.Random, folder: Path) -> Counter[str]:
    """Every file of a model, a bit of it changed, and its list: what a stage checks before it loads refuses them."""
    tried = Counter[str]()
    for named in tiny_models().values():
        model = shutil.copytree(named, folder / named.name)
        check_list(model, "a model")
        for path in (*files_of(model), *(model / "SHA256SUMS",) * _FLIPS):
            with _flipped(draw, path), pytest.raises(SettingsError, match="SHA256SUMS"):
                check_list(model, "a model")
            tried["tampered weights"] += 1
        check_list(model, "a model")
    return tried


@contextmanager
def _flipped(draw: random.Random, path: Path) -> Iterator[None]:
    """A file with one bit changed, until the end of the block; of a list, a bit of a digest or a name."""
    whole = path.read_bytes()
    data = bytearray(whole)
    places = [at for at, byte in enumerate(data) if byte > 0x20] if path.suffix == "" else range(len(data))
    data[draw.choice(places)] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def _commands(folder: Path, name: str) -> list[tuple[object, ...]]:
    """One of each kind that asks a server."""
    scene_file = write_scenes(folder / "scenes.json", 1)
    return [
        ("image", "a", "-o", folder / f"{name}.png"),
        ("ps",),
        ("wait", "--timeout", 1),
        ("scale", "t2i", 1, "--timeout", 1),
        ("run", scene_file, "--output-dir", folder / f"{name} out", "--retries", 0, "--patience", 0),
    ]


def _check_foreign_settings(draw: random.Random, folder: Path) -> Counter[str]:
    """Proxies, .netrc and the like of the user's shell: the server gets the right key, and no other host gets any."""
    netrc = folder / ".netrc"
    netrc.write_text("machine 127.0.0.1 login a password netrc-password\ndefault login b password c\n")
    netrc.chmod(0o600)
    tried = Counter[str]()
    with fake_server(lambda seen: Answer(502)) as proxy:
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        home = {"HOME": str(folder), "NETRC": str(netrc), "NO_PROXY": "", "no_proxy": ""}
        for arguments in _commands(folder, "a"):
            with fake_server(_ready) as server:
                settings = dict.fromkeys(names, proxy.url) | home
                done = run(command(*arguments, *connection(server)), **settings)
                assert proxy.seen == [], f"{arguments[0]}: the proxy saw {proxy.seen}"
                keys = {seen.headers.get("Authorization") for seen in server.seen}
                assert keys == {"Bearer t"}, f"{arguments[0]}: {keys}: {done.stderr[-500:]}"
            tried["commands"] += 1
    return tried


def _ready(seen: Seen, text: str = "", posted: Answer | None = None) -> Answer:
    """A server that has everything ready; it may describe its workers by a text, or have one answer to all POSTs."""
    if posted and seen.method == "POST":
        return posted
    if seen.path.startswith("/predictions/"):
        return event_lines("started", "result") if NDJSON in seen.headers.get("Accept", "") else file_answer()
    if seen.path.startswith("/models"):
        described = {"stage": "t2i", "model": text or "m@1", "device": text or "cpu"}
        workers = [{"status": "READY", "id": text or "1", "gpuUsage": text}]
        return Answer(body=json.dumps([{"workers": workers, "customizedMetadata": described}]).encode())
    return Answer(body=b'{"status": "Healthy"}')


def _check_terminal(draw: random.Random, folder: Path) -> Counter[str]:
    """Whatever a server says, and wherever it says it, a terminal shows it and obeys none of it."""
    failed = {"event": "error", "code": 422, "type": _EVIL, "message": _EVIL}
    body = json.dumps({"code": 422, "type": _EVIL, "message": _EVIL}).encode()
    refusal = json.dumps({"code": 400, "type": "InvalidKeyException", "message": _EVIL}).encode()
    model = file_answer(headers={"CloudVid-Model": "m\x1b[2J@1"})
    servers: dict[str, Callable[[Seen], Answer]] = {
        "error": partial(_ready, posted=Answer(422, body)),
        "event": partial(_ready, posted=event_lines("started", failed)),
        "no event": partial(_ready, posted=Answer(200, _EVIL.encode())),
        "model": partial(_ready, posted=model),
        "management": partial(_ready, text=_EVIL),
        "page": _always(Answer(502, _EVIL.encode())),
        "refused": _always(Answer(400, refusal)),
    }
    tried = Counter[str]()
    for name, answer in servers.items():
        for arguments in [*_commands(folder, name), ("doctor",)]:
            with fake_server(answer) as server:
                done = cloudvid(*arguments, *connection(server), cwd=folder)
            _check_plain(f"{name}, cloudvid {arguments[0]}", done)
            tried["commands"] += 1
    return tried


CHECKS = {
    "ids": _check_ids,
    "redirects": _check_redirects,
    "archives": _check_archives,
    "weights": _check_weights,
    "foreign settings": _check_foreign_settings,
    "terminal": _check_terminal,
}

"""S1: who gets in, what a scene's id can do, where a key goes, what is written down, and files that were tampered with.

Much of it is what the tests try, once more against a server that the suite has loaded; the rest is their breadth.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import profiles
import test_exposure
from changed_archives import build as build_archives
from conftest import Running
from fake_server import Answer, FakeServer, Seen, event_lines, fake_server
from folders import write_scenes
from loopback import free_port
from proxies import NGINX
from test_client import file_answer
from torchserve_process import Server, ServerError

from cloudvid import Client, InvalidSceneFile, errors, parse_scenes
from cloudvid_schema.protocol import NDJSON
from cloudvid_stages.digests import check_list, files_of
from cloudvid_stages.settings import SettingsError
from soak.case import Case, check
from soak.commands import clean_environment
from soak.hostile_ids import hostile_ids
from soak.report import Report, Round

_IDS = 600
_TOKEN = "the-callers-own-token"
_SECONDS = 60
_FLIPS = 20
_EVIL = "\x1b]0;owned\x07\x1b[2J\r\nscene s0: done\u202e\x00"
Check = Callable[[Round], None]


def _run_client(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cloudvid.cli", *arguments]
    # fmt: off
    done = subprocess.run(
        command, env={**clean_environment(), **environment}, capture_output=True, timeout=_SECONDS, check=False,
    )
    # fmt: on
    said = [text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr)]  # a carriage return stays one
    return subprocess.CompletedProcess(command, done.returncode, *said)


def _ids(each: Round) -> None:
    """Six hundred ids in one file, and each alone: refused, by place, before anything is sent or written."""
    names = each.draw.sample(hostile_ids(), _IDS)
    for name in names:
        try:
            parse_scenes([{"id": name, "scene_desc": "a"}])
        except InvalidSceneFile as error:
            check({fault.place for fault in error.faults} == {"scenes[0].id"}, f"{name!r}: {error}")
        else:
            check(False, f"{name!r} is taken")
    path, folder = each.folder / "scenes.json", each.folder / "out"
    path.write_text(json.dumps([{"id": name, "scene_desc": "a"} for name in names]))
    with fake_server(lambda seen: Answer()) as server:
        done = _run_client({}, "run", str(path), "--output-dir", str(folder), "--server", server.url, "--token", _TOKEN)
        check((done.returncode, server.seen) == (2, []), f"{done.returncode}: {done.stderr[-500:]}")
    check(not folder.exists(), "a folder was made")
    _check_plain(done)
    said = done.stdout + done.stderr
    check(all(f"scenes[{index}].id: " in said for index in range(_IDS)), "an id is not named")
    each.report.count_of("hostile ids", _IDS)


def _check_plain(done: subprocess.CompletedProcess[str]) -> None:
    """Nothing that a terminal would obey, and no line that is not the command's own."""
    said = done.stdout + done.stderr
    harmful = {letter for letter in said if not letter.isprintable() and letter != "\n"}
    check(not harmful, f"printed {harmful}: {said[-500:]!r}")
    check("Traceback" not in said, said[-2000:])
    check("\nscene s0: done" not in said, f"printed a line of its own: {said[-500:]!r}")


def _always(answer: Answer) -> Callable[[Seen], Answer]:
    return lambda seen: answer


def _redirects(each: Round) -> None:
    """A redirect is an error: neither key nor picture goes to another host."""
    for status in (300, 301, 302, 303, 305, 307, 308):
        with fake_server(lambda seen: file_answer()) as other:
            moved = Answer(status, b"moved", {"Location": f"{other.url}/predictions/t2i"})
            with fake_server(_always(moved)) as server:
                client = Client(server.url, management=server.url, token=_TOKEN)
                for ask in (
                    lambda c=client: c.text_to_image("a"),
                    lambda c=client: c.image_to_video(b"x"),
                    client.check_ready,
                ):
                    try:
                        ask()
                        check(False, f"{status} was taken for an answer")
                    except errors.CloudVidError:
                        each.report.count_of("redirects")
            check(other.seen == [], f"{status}: the other host was asked")


def _foreign_settings(each: Round) -> None:
    """Proxies, .netrc and the like of the user's shell: the server gets the right key, and nobody else gets any."""
    (each.folder / ".netrc").write_text(
        "machine 127.0.0.1 login a password netrc-password\ndefault login b password c\n"
    )
    (each.folder / ".netrc").chmod(0o600)
    scene_file = write_scenes(each.folder / "scenes.json", 1)
    with fake_server(lambda seen: Answer(502)) as proxy:
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        home = {"HOME": str(each.folder), "NETRC": str(each.folder / ".netrc"), "NO_PROXY": "", "no_proxy": ""}
        environment = dict.fromkeys(names, proxy.url) | home
        for arguments in (
            ("image", "a", "-o", str(each.folder / "a.png")),
            ("ps",),
            ("wait", "--timeout", "1"),
            ("scale", "t2i", "1", "--timeout", "1"),
            ("run", str(scene_file), "--output-dir", str(each.folder / "out"), "--retries", "0"),
        ):
            with fake_server(_answer) as server:
                done = _run_client(
                    environment, *arguments, "--server", server.url, "--management", server.url, "--token", _TOKEN
                )
                check(proxy.seen == [], f"{arguments[0]}: the proxy saw {proxy.seen}")
                _check_keys(server, arguments[0], done)
            each.report.count_of("commands")


def _check_keys(server: FakeServer, name: str, done: subprocess.CompletedProcess[str]) -> None:
    keys = {seen.headers.get("Authorization") for seen in server.seen}
    check(keys == {f"Bearer {_TOKEN}"}, f"{name}: {keys}: {done.stderr[-500:]}")


def _answer(seen: Seen, **changes: str) -> Answer:
    """A server that has everything ready."""
    if seen.path.startswith("/predictions/"):
        return event_lines("started", "result") if NDJSON in seen.headers.get("Accept", "") else file_answer()
    if seen.path.startswith("/models"):
        told = {"stage": "t2i", "model": changes.get("text", "m@1"), "device": changes.get("text", "cpu")}
        workers = [{"status": "READY", "id": changes.get("text", "1"), "gpuUsage": changes.get("text", "")}]
        return Answer(body=json.dumps([{"workers": workers, "customizedMetadata": told}]).encode())
    return Answer(body=b'{"status": "Healthy"}')


def _terminal(each: Round) -> None:
    """Whatever a server says, and wherever it says it, a terminal shows it and obeys none of it."""
    scene_file = write_scenes(each.folder / "scenes.json", 1)
    failed = {"event": "error", "code": 422, "type": _EVIL, "message": _EVIL}
    body = json.dumps({"code": 422, "type": _EVIL, "message": _EVIL}).encode()
    answers: dict[str, Callable[[Seen], Answer]] = {
        "error": lambda seen: Answer(422, body) if seen.method == "POST" else _answer(seen),
        "event": lambda seen: event_lines("started", failed) if seen.method == "POST" else _answer(seen),
        "no event": lambda seen: Answer(200, _EVIL.encode()) if seen.method == "POST" else _answer(seen),
        "page": lambda seen: Answer(502, _EVIL.encode()),
        "management": lambda seen: _answer(seen, text=_EVIL),
        "refused": lambda seen: Answer(
            400, body.replace(b"422", b"400").replace(json.dumps(_EVIL).encode(), b'"InvalidKeyException"', 1)
        ),
        "model": lambda seen: (
            file_answer(headers={"CloudVid-Model": "m\x1b[2J@1"}) if seen.method == "POST" else _answer(seen)
        ),
    }
    for name, answer in answers.items():
        for arguments in (
            ("image", "a", "-o", str(each.folder / f"{name}.png")),
            ("ps",),
            ("doctor",),
            ("wait", "--timeout", "1"),
            (
                "run",
                str(scene_file),
                "--output-dir",
                str(each.folder / f"{name} out"),
                "--retries",
                "0",
                "--patience",
                "0",
            ),
        ):
            with fake_server(answer) as server:
                done = _run_client(
                    {}, *arguments, "--server", server.url, "--management", server.url, "--token", _TOKEN
                )
            try:
                _check_plain(done)
            except AssertionError as error:
                check(False, f"{name}, cloudvid {arguments[0]}: {error}")
            each.report.count_of("commands")


def _keys(each: Round, running: Running) -> None:
    test_exposure.test_each_route_of_torchserve_opens_to_its_own_key_alone(running)
    each.report.count_of("routes", len(test_exposure.ROUTES) + len(test_exposure.OPEN))


def _keys_through_the_proxy(each: Round, running: Running) -> None:
    test_exposure.test_through_the_proxy_no_key_of_torchserve_opens_anything_and_a_callers_token_only_what_it_shall(
        running, each.folder
    )


def _nothing_written_down(each: Round, running: Running) -> None:
    test_exposure.test_neither_a_prompt_nor_a_token_is_written_down(running, each.folder)


def _archives(each: Round) -> None:
    """Archives of which a bit was changed, at any place, or whose list was: no server starts, and it is said why."""
    store = build_archives(each.folder / "archives", lambda handlers: None)
    server = Server(each.folder / "run", free_port())
    for name in ("t2i.mar", "i2v.mar", "SHA256SUMS"):
        for _ in range(_FLIPS):
            with _flipped(each, store / name):
                try:
                    server.spawn(store)
                except ServerError as error:
                    check(".mar is not the one that was built" in str(error), f"{name}: {error}")
                else:
                    server.stop()
                    check(False, f"a server starts with another {name}")
            each.report.count_of("tampered archives")
    check(not server.run_dir.exists(), "a refused server leaves a folder")


def _weights(each: Round) -> None:
    """Every file of a model, a bit of it changed, and its list: what a stage checks before it loads refuses them."""
    for named in profiles.choose_models("tiny").values():
        model = shutil.copytree(named, each.folder / Path(named).name)
        identity = "a model"
        check_list(model, identity)
        for path in (*files_of(model), *(model / "SHA256SUMS",) * _FLIPS):
            with _flipped(each, path):
                try:
                    check_list(model, identity)
                except SettingsError as error:
                    check("SHA256SUMS" in str(error), f"{path.name}: {error}")
                else:
                    check(False, f"{model.name} loads with another {path.relative_to(model)}")
            each.report.count_of("tampered weights")
        check_list(model, identity)


@contextmanager
def _flipped(each: Round, path: Path) -> Iterator[None]:
    """A file with one bit changed, until the end of the block; of a list, a bit of a digest or a name."""
    whole = path.read_bytes()
    data = bytearray(whole)
    places = [at for at, byte in enumerate(data) if byte > 0x20] if path.suffix == "" else range(len(data))
    data[each.draw.choice(places)] ^= 1 << each.draw.randrange(8)
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


ALONE: tuple[Check, ...] = (_ids, _redirects, _archives, _weights, _foreign_settings, _terminal)
SERVED = (_keys, _keys_through_the_proxy, _nothing_written_down)


def _run(report: Report) -> None:
    with ExitStack() as stack:
        running: Running | None = None
        for each in report.rounds():
            with each:
                if each.number < len(ALONE):
                    ALONE[each.number](each)
                else:
                    running = running or stack.enter_context(report.server())
                    SERVED[each.number - len(ALONE)](each, running)


CASE = Case(
    "S1",
    "keys and routes, 600 hostile ids, redirects, proxies, .netrc, words for a terminal and a log, tampered files",
    "as documented",
    count=len(ALONE) + len(SERVED),
    short=2,
    run=_run,
    unit="checks",
    why_not=lambda: "" if NGINX else "nginx is not installed (apt-get install nginx-light)",
)

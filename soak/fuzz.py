"""Z2: the body decoder and the image gate under a fuzzer that is guided by coverage (atheris, which is libFuzzer).

`python -m soak.fuzz bodies|pictures CORPUS [libFuzzer's options]` is one fuzzer; it ends its process. The corpus is
written by code, since the seeds are: no file of it is kept.
"""

import base64
import contextlib
import os
import re
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from soak import ROOT
from soak.case import Case, check
from soak.report import Report, Round

EXECUTIONS = 100_000
"""Of one round: a process of the fuzzer, with a seed of its own."""
_SHORT_EXECUTIONS = 3_000
"""In the short cut: the first of them."""
_LONGEST = {"bodies": 2048, "pictures": 4096}
"""Bytes of an input: enough for each kind of part, and quick."""
_MOST_PIXELS = 64 * 1024
_SECONDS = 10
"""For one input; the median takes a fifth of a millisecond."""
_MOST_MIB = 512
"""Resident, of a process that starts with a hundred."""
_ADDRESS_SPACE = 8 * 2**30


def one_body(data: bytes) -> None:
    """Read bytes as a request: the first byte says the stage and form, a zero parts one field from the next."""
    from cloudvid_schema.bodies import ACCEPTED, Body, read
    from cloudvid_schema.protocol import JSON, ErrorBody, RequestError, Stage

    forms = [(stage, form) for stage in Stage for form in (*ACCEPTED[stage], "text/plain")]
    stage, form = forms[data[0] % len(forms)] if data else forms[0]
    content, *parts = data[1:].split(b"\0")
    fields = {name.decode(errors="replace"): value for name, _, value in (part.partition(b"=") for part in parts)}
    try:
        request, picture = read(stage, Body(form, fields, content))
    except RequestError as error:
        ErrorBody.model_validate_json(error.body.model_dump_json())
        assert error.body.code in (400, 413, 415, 422)
        assert error.body.message.isprintable(), error.body.message
        return
    assert (picture is None) == (stage is Stage.T2I)
    again, _ = read(stage, Body(JSON, {}, with_picture(request.model_dump_json(), picture)))
    assert again == request


def with_picture(text: str, picture: bytes | None) -> bytes:
    """The JSON form of a request."""
    image = b"" if picture is None else b'"image":"' + base64.b64encode(picture) + b'",'
    return b"{" + image + text.encode()[1:]


def one_picture(data: bytes) -> None:
    """Open bytes as a picture; after an odd first byte a PNG's checksums are made right, to get past them."""
    from cloudvid_schema.protocol import RequestError
    from cloudvid_stages.pictures import open_picture

    picture = checked(data[1:]) if data[:1] and data[0] % 2 else data[1:]
    try:
        image = open_picture(picture, _MOST_PIXELS)
    except RequestError as error:
        assert error.body.code == 422
        assert [fault.parameter for fault in error.body.errors] == ["image"]
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= _MOST_PIXELS


def checked(png: bytes) -> bytes:
    """A PNG with the checksum that each chunk should have."""
    parts, position = [png[:8]], 8
    while len(head := png[position : position + 8]) == 8:
        length = int.from_bytes(head[:4], "big")
        body = png[position + 4 : position + 8 + length]
        parts += [head[:4], body, zlib.crc32(body).to_bytes(4, "big")]
        position += 12 + length
    return b"".join([*parts, png[position:]])


def seeds_of_bodies() -> Iterator[bytes]:
    """Each parameter at its limits, in each form."""
    from parameter_limits import FORMS, as_field, cheapest, json_body, rules, values

    from cloudvid_schema.protocol import JSON, MULTIPART, Stage

    first = {(Stage.T2I, JSON): b"\0", (Stage.I2V, MULTIPART): b"\2", (Stage.I2V, JSON): b"\6"}
    for stage, form in FORMS:
        for name, literal, _ in values(stage, form):
            literals = cheapest(stage) | {name: literal}
            if form == JSON:
                yield first[stage, form] + json_body(stage, literals)
            else:
                fields = {each: as_field(rules(stage).get(each), text) for each, text in literals.items()}
                text = "".join(f"\0{each}={value}" for each, value in fields.items())
                yield first[stage, form] + text.encode(errors="replace") + b"\0image=x"
    yield b'\2\0image=x\0parameters={"fps": 6, "metadata": {"a": [1, {}]}}'


def seeds_of_pictures() -> Iterator[bytes]:
    """Small pictures of every kind, and all hostile ones that are short."""
    import hostile_pictures
    from picture_parts import encoded, noise

    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield b"\1" + encoded(noise(8, 8, "RGB").convert(mode), "PNG")
    for kind in ("JPEG", "WEBP"):
        yield b"\0" + encoded(noise(8, 8), kind)
    yield b"\0" + encoded(noise(16, 16), "JPEG", progressive=True)
    yield b"\0" + encoded(noise(8, 8), "WEBP", lossless=True)
    for _, data in (*hostile_pictures.taken(), *hostile_pictures.refused()):
        yield b"\1" + data


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "bodies": (one_body, seeds_of_bodies),
    "pictures": (one_picture, seeds_of_pictures),
}


def write_corpus(target: str, folder: Path) -> None:
    """The seeds of a target as libFuzzer reads them."""
    folder.mkdir(parents=True)
    for number, data in enumerate(TARGETS[target][1]()):
        if len(data) <= _LONGEST[target]:
            (folder / str(number)).write_bytes(data)


def _fuzz(each: Round, target: str, corpus: Path) -> None:
    """One process of the fuzzer, and what it found."""
    report, folder = each.report, each.report.folder / str(each.number)
    folder.mkdir()
    runs = EXECUTIONS if report.timed else _SHORT_EXECUTIONS
    # The shell's child counts its own memory; a child of this process begins with the peak of this one.
    # fmt: off
    command = [
        "sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "soak.fuzz", target,
        f"-seed={each.draw.randrange(1, 2**31)}", f"-runs={runs}",
        f"-max_len={_LONGEST[target]}", f"-timeout={_SECONDS}", f"-rss_limit_mb={_MOST_MIB}",
        f"-artifact_prefix={folder}/", "-print_final_stats=1", str(folder / "new"), str(corpus),
    ]
    # fmt: on
    (folder / "new").mkdir()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False, timeout=900)
    said = done.stderr
    for path in sorted(folder.iterdir()):
        if path.is_file():
            text = base64.b64encode(path.read_bytes()).decode()
            again = f"echo {text} | base64 -d > input && .venv/bin/python -m soak.fuzz {target} input"
            check(False, f"{target}: {path.name.partition('-')[0]}: {_reason(said)}\n  the input again: {again}")
    figures = dict(re.findall(r"stat::(\w+):\s+(\d+)", said))
    check(done.returncode == 0 and figures, f"{target}: ended with {done.returncode}: {said[-1500:]}")
    report.count_of(f"{target} executions", int(figures["number_of_executed_units"]))
    report.measure(f"{target} memory", float(figures["peak_rss_mb"]), "MiB")
    report.measure(f"{target} coverage", float(re.findall(r"cov: (\d+)", said)[-1]), "edges")


def _reason(said: str) -> str:
    found = re.search(r"=== Uncaught Python exception: ===\n(.*?)\n(?:==|\n)", said, re.DOTALL)
    return found[1] if found else said[-1500:]


def _run(report: Report) -> None:
    for target in TARGETS:
        write_corpus(target, report.folder / f"corpus-{target}")

    def work(each: Round) -> None:
        target = list(TARGETS)[each.number % len(TARGETS)]
        _fuzz(each, target, report.folder / f"corpus-{target}")

    report.spread(work, threads=len(os.sched_getaffinity(0)))


CASE = Case(
    "Z2",
    "atheris on the body decoder and the image gate, half of the rounds each",
    f"nothing uncaught, no input takes {_SECONDS} s, no process holds {_MOST_MIB} MiB",
    count=20,
    short=2,
    run=_run,
    unit=f"fuzzers of {EXECUTIONS:,} executions",
    needs=("atheris",),
)


def main() -> None:
    """Be a fuzzer: instrument what is under test, then hand over to libFuzzer, which ends the process."""
    import atheris

    target = sys.argv[1]
    with (
        atheris.instrument_imports(include=["cloudvid_schema", "cloudvid_stages", "PIL"]),
        contextlib.suppress(ImportError),
    ):
        import cloudvid_schema.bodies  # noqa: F401
        import cloudvid_stages.pictures  # noqa: F401
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[target][0])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""R5: what a request costs beside its job. Real jobs of one step, less the time that the server's own timings
(Server-Timing, or those of a stream's last event) give to the job; by megabytes.

What is left is all the rest: connection, TorchServe, its worker's socket, reading and checking the body, the picture's
decoding, digests on both sides, and the way back. Upwards the megabytes are pictures of 64×64 pixels with an
ancillary chunk of random bytes, which decoders pass over; downwards larger pictures. Then what streaming adds to a job:
the same job of many steps, with and without events.

A JVM compiles what runs often. It is given that chance beforehand, with requests that are refused once the whole body
was read and its picture decoded.
"""

import io
import os
import statistics
import struct
import zlib
from collections.abc import Callable
from itertools import product

import requests
from figures import Figure, Line
from measure import AGAIN, interleave, median, noise_floor, ratio, straight_line
from outputs import check
from PIL import Image
from stand import Running, Stand, WrongOutput

from cloudvid import Client, Generated, Stage
from cloudvid.answers import streamed, whole
from cloudvid_schema.protocol import MP4, NDJSON, PNG, ImageToVideoRequest, TextToImageRequest

MIB = 2**20
_EVENTS = ("plain", "streamed")
_STEPS = {"num_inference_steps": 1, "seed": 7}


def padded_picture(size: int) -> bytes:
    """A PNG picture of 64×64 pixels in a file of about so many bytes, the rest of them in a chunk that nobody reads."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(buffer, "PNG")
    picture = buffer.getvalue()
    if (left := size - len(picture) - 12) <= 0:
        return picture
    kind, filler = b"pdNg", os.urandom(left)
    chunk = struct.pack(">I", left) + kind + filler + struct.pack(">I", zlib.crc32(kind + filler))
    return picture[:33] + chunk + picture[33:]  # after signature and header


def _nothing(event: object) -> None:
    """Nobody watches."""


class Forms:
    """Each way to ask, on connections that are kept."""

    def __init__(self, running: Running) -> None:
        self._client: Client = running.client()
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {running.key('inference')}"
        self._invocations = f"{running.server.url}/invocations"
        self._form = f"{running.server.url}/predictions/i2v"

    def json(self, side: int, events: str, steps: int = 1) -> Generated:
        """t2i, a JSON body: the picture comes back."""
        asked = TextToImageRequest(prompt="a lamp", width=side, height=side, seed=7, num_inference_steps=steps)
        return self._client.send(asked, on_event=_nothing if events == "streamed" else None)

    def multipart(self, picture: bytes, events: str) -> Generated:
        """i2v, a form, as the client sends it."""
        asked = ImageToVideoRequest(num_frames=2, **_STEPS)
        return self._client.send(asked, picture, on_event=_nothing if events == "streamed" else None)

    def warm_up(self, picture: bytes, times: int) -> None:
        """Send a picture so often in both forms, with a width that no clip can have."""
        for _ in range(times):
            for url, body in (
                (f"{self._invocations}?model_name=i2v&width=100", {"data": picture, "headers": {"Content-Type": PNG}}),
                (self._form, {"files": {"image": picture, "width": b"100"}}),
            ):
                answer = self._session.post(url, timeout=300, **body)
                if answer.status_code != 422:
                    raise WrongOutput(f"a width of 100 is answered with {answer.status_code}")

    def raw(self, picture: bytes, events: str) -> Generated:
        """i2v, the picture alone as the body."""
        query = {"model_name": "i2v", "num_frames": 2, **_STEPS}
        headers = {"Content-Type": PNG, "Accept": NDJSON if events == "streamed" else MP4}
        with self._session.post(
            self._invocations, params=query, data=picture, headers=headers, stream=True, timeout=300
        ) as answer:
            answer.raise_for_status()
            return streamed(Stage.I2V, answer, _nothing) if events == "streamed" else whole(Stage.I2V, answer)


def measure(stand: Stand) -> Figure:
    """Every form and size in turn, then one job plain, streamed, plain again."""
    forms = Forms(stand.shared)
    sizes = [0, MIB] if stand.smoke else [0, MIB, 3 * MIB, 6 * MIB]
    pictures = [padded_picture(size) for size in sizes]
    forms.warm_up(pictures[-1], stand.size(25, 1))
    sides = [64, 128] if stand.smoke else [64, 384, 768]
    outside: dict[str, float] = {}

    def timed(name: str, send: Callable[[], Generated]) -> float:
        began = stand.clock()
        made = send()
        seconds = stand.clock() - began
        outside[name] = 1000 * seconds - sum(made.timings.values())
        return outside[name]

    arms: dict[str, Callable[[], float]] = {}
    megabytes: dict[str, float] = {}
    for events, side in product(_EVENTS, sides):
        name = f"json, {events}, {side}"
        made = forms.json(side, events)
        check(made.data, (1, side, side, 3))
        megabytes[name] = len(made.data) / 1e6
        arms[name] = lambda name=name, side=side, events=events: timed(name, lambda: forms.json(side, events))
    for form, events, picture in product((forms.raw, forms.multipart), _EVENTS, pictures):
        name = f"{form.__name__}, {events}, {len(picture)}"
        made = form(picture, events)
        check(made.data, (2, 64, 64, 3))
        megabytes[name] = (len(picture) + len(made.data)) / 1e6
        arms[name] = lambda name=name, form=form, picture=picture, events=events: timed(
            name, lambda: form(picture, events)
        )
    samples = interleave(arms, stand.size(7, 1))
    stand.told("a job, plain and streamed")
    jobs = _jobs(stand, forms)
    lines, drawn = [], {}
    for form, events in product(("json", "raw", "multipart"), _EVENTS):
        mine = [name for name in arms if name.startswith(f"{form}, {events},")]
        points = [(megabytes[name], sample[name]) for sample in samples for name in mine]
        at_zero, slope = straight_line(points)
        lines += [
            Line.of(f"{form}, {events}: a request", at_zero, "ms", at_most=5),
            Line.of(f"{form}, {events}: a megabyte", slope, "ms", at_most=8),
        ]
        drawn[f"{form}, {events}"] = [
            [megabytes[name], statistics.median(sample[name] for sample in samples)] for name in mine
        ]
    added = ratio(jobs, "streamed", "plain")
    floor = noise_floor(jobs, "plain").value
    lines.append(Line.of("a job, streamed / plain", added, floor=floor, at_most=1.02))
    lines.append(Line.of("that job", median([sample["plain"] for sample in jobs]), "s"))
    return Figure(
        "R5",
        "A request beside its job",
        lines,
        {"milliseconds": samples, "megabytes": megabytes, "jobs": jobs},
        {"sides": sides, "picture_bytes": sizes},
        [{"kind": "lines", "x": "megabytes sent and answered", "y": "ms beside the job", "series": drawn}],
    )


def _jobs(stand: Stand, forms: Forms) -> list[dict[str, float]]:
    """Seconds of one job of many steps, with and without its events."""
    made: dict[str, bytes] = {}
    side, steps = stand.size(128, 64), stand.size(40, 2)

    def job(events: str) -> float:
        began = stand.clock()
        made[events] = forms.json(side, events, steps).data
        return stand.clock() - began

    arms = {"plain": lambda: job("plain"), "streamed": lambda: job("streamed"), "plain" + AGAIN: lambda: job("plain")}
    job("plain")
    samples = interleave(arms, stand.size(7, 1))
    if made["plain"] != made["streamed"]:
        raise WrongOutput("a stream ends in another file")
    return samples

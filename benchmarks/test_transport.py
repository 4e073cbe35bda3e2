"""R5: what a request costs beside its job. Real jobs of one step, less the time that the server's own timings
(Server-Timing, or those of a stream's last event) give to the job; by megabytes.

What is left is all the rest: connection, TorchServe, its worker's socket, reading and checking the body, the picture's
decoding, digests on both sides, and the way back. Upwards the megabytes are pictures of 64×64 pixels with an
ancillary chunk of random bytes, which decoders pass over; downwards larger pictures. Then what streaming adds to a job:
the same job of many steps, with and without events.

A JVM compiles what runs often. It is given that chance beforehand, with requests that are refused once the whole body
was read and its picture decoded.
"""

import statistics
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest

from benchmarks.figures import Line
from benchmarks.measure import Samples, interleave, median, noise_floor, ratio, straight_line, timed
from benchmarks.outputs import WrongOutput, check
from benchmarks.plots import lines as lines_panel
from cloudvid import Generated, Stage
from cloudvid.endpoints.answers import streamed, whole
from cloudvid.endpoints.connection import plain_session
from cloudvid_schema.protocol import MP4, NDJSON, PNG, ImageToVideoRequest, TextToImageRequest
from support.picture_parts import MIB, padded_picture
from support.servers import Running

_WATCHER = {"plain": None, "streamed": lambda event: None}
"""Of a request's events, by the way to ask."""
_STEPS = {"num_inference_steps": 1, "seed": 7}


class Forms:
    """Each way to ask, plain or streamed, on connections that are kept."""

    def __init__(self, running: Running) -> None:
        self._client, self._session, self._url = running.client(), plain_session(), running.url
        self._session.headers["Authorization"] = f"Bearer {running.key('inference')}"

    def json(self, side: int, events: str, steps: int = 1) -> Generated:
        """t2i, a JSON body: the picture comes back."""
        asked = TextToImageRequest(prompt="a lamp", width=side, height=side, seed=7, num_inference_steps=steps)
        return self._client.send(asked, on_event=_WATCHER[events])

    def multipart(self, picture: bytes, events: str) -> Generated:
        """i2v, a form, as the client sends it."""
        return self._client.send(ImageToVideoRequest(num_frames=2, **_STEPS), picture, on_event=_WATCHER[events])

    def raw(self, picture: bytes, events: str) -> Generated:
        """i2v, the picture as the whole body."""
        query = {"model_name": "i2v", "num_frames": 2, **_STEPS}
        headers = {"Content-Type": PNG, "Accept": NDJSON if events == "streamed" else MP4}
        options = {"params": query, "headers": headers, "stream": True, "timeout": 300}
        with self._session.post(f"{self._url}/invocations", data=picture, **options) as answer:
            answer.raise_for_status()
            watcher = _WATCHER[events]
            return streamed(Stage.I2V, answer, watcher) if watcher else whole(Stage.I2V, answer)

    def warm_up(self, picture: bytes, times: int) -> None:
        """Send a picture so often in both forms, with a width that no clip can have."""
        raw = {"data": picture, "headers": {"Content-Type": PNG}, "params": {"model_name": "i2v", "width": 100}}
        form = {"files": {"image": picture, "width": b"100"}}
        for path, body in [("invocations", raw), ("predictions/i2v", form)] * times:
            answer = self._session.post(f"{self._url}/{path}", timeout=300, **body)
            if answer.status_code != 422:
                raise WrongOutput(f"a width of 100 is answered with {answer.status_code}")


def _outside(send: Callable[[], Generated]) -> float:
    """Milliseconds that the server's timings do not cover."""
    seconds, made = timed(send)
    return 1000 * seconds - sum(made.timings.values())


@pytest.mark.bench("R5", "A request beside its job")
def test_r5_request_beside_its_job(bench, server):
    forms = Forms(server)
    sizes = [0, MIB] if bench.is_smoke else [0, MIB, 3 * MIB, 6 * MIB]
    sides = [64, 128] if bench.is_smoke else [64, 384, 768]
    pictures = [padded_picture(size) for size in sizes]
    forms.warm_up(pictures[-1], bench.size(25, 1))
    ways: dict[str, Callable[[], float]] = {}
    megabytes: dict[str, float] = {}

    def add(name: str, send: Callable[[], Generated], sent: int, shape: tuple[int, ...]) -> None:
        data = send().data
        check(data, shape)
        megabytes[name] = (sent + len(data)) / 1e6
        ways[name] = partial(_outside, send)

    for events, side in product(_WATCHER, sides):
        add(f"json, {events}, {side}", partial(forms.json, side, events), 0, (1, side, side, 3))
    for form, events, picture in product((forms.raw, forms.multipart), _WATCHER, pictures):
        name = f"{form.__name__}, {events}, {len(picture)}"
        add(name, partial(form, picture, events), len(picture), (2, 64, 64, 3))
    samples = interleave(ways, bench.size(7, 1))
    lines, series = [], {}
    for kind in (f"{form}, {events}" for form, events in product(("json", "raw", "multipart"), _WATCHER)):
        names = [name for name in ways if name.startswith(f"{kind},")]
        at_zero, slope = straight_line([(megabytes[name], sample[name]) for sample in samples for name in names])
        lines += [
            Line.of(f"{kind}: a request", at_zero, "ms", at_most=5),
            Line.of(f"{kind}: a megabyte", slope, "ms", at_most=8),
        ]
        series[kind] = [[megabytes[name], statistics.median(sample[name] for sample in samples)] for name in names]
    bench.progress("a job, plain and streamed")
    jobs = _jobs(forms, bench.size(128, 64), bench.size(40, 2), bench.size(7, 1))
    added, floor = ratio(jobs, "streamed", "plain"), noise_floor(jobs, "plain")
    lines.append(Line.of("a job, streamed / plain", added, floor=floor, at_most=1.02))
    lines.append(Line.of("that job", median([sample["plain"] for sample in jobs]), "s"))
    raw = {"milliseconds": samples, "megabytes": megabytes, "jobs": jobs}
    panel = lines_panel("megabytes sent and answered", "ms beside the job", series)
    bench.keep(lines, raw, {"sides": sides, "picture_bytes": sizes}, panel)


def _jobs(forms: Forms, side: int, steps: int, rounds: int) -> Samples:
    """Seconds of one job of many steps, with and without its events."""
    files: dict[str, bytes] = {}

    def job(events: str) -> float:
        seconds, made = timed(lambda: forms.json(side, events, steps))
        files[events] = made.data
        return seconds

    job("plain")
    samples = interleave({events: partial(job, events) for events in _WATCHER}, rounds, again="plain")
    if files["plain"] != files["streamed"]:
        raise WrongOutput("a stream ends in another file")
    return samples

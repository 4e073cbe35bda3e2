"""F2: the server is ended in mid-batch, by SIGTERM or SIGKILL, and started again with new keys. The batch goes on."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from folders import pictures_and_clips
from torchserve_process import alive_after

from cloudvid import render
from cloudvid.events import BatchEvent, BatchFinished, StageStarted
from soak.case import Case, Wrong, check
from soak.jobs import LONGEST, scene
from soak.lane import Work
from soak.report import Report, Round
from soak.servers import Served, on_servers, processes, start

_SIGNALS = (signal.SIGTERM, signal.SIGKILL)
_SCENES = [scene(f"s{index}", steps=4, frames=4) for index in range(3)]
_LONGEST = 0.5  # seconds from the beginning of a request to the end of its server
_GONE = 2.0


def _run(report: Report) -> None:
    on_servers(report, _restarts)
    report.limit("workers gone after it", 100, _GONE)


def _restarts(running: Served) -> Work:
    """What ends and starts a server, once it is known what an undisturbed batch makes."""
    undisturbed = running.process.run_dir.parent / "undisturbed batch"
    for _ in render(_SCENES, running.client(), undisturbed):
        pass
    expected = pictures_and_clips(undisturbed)

    def work(each: Round) -> None:
        try:
            _restart(each, running, expected)
        finally:
            if not (running.process.pid_file.is_file() and processes(running).java):
                running.process.stop()
                start(running)

    return work


def _restart(each: Round, running: Served, expected: dict[str, bytes]) -> None:
    sign = _SIGNALS[each.number % 2]
    keys = running.key_file.read_text()
    victim, delay = each.draw.randrange(2 * len(_SCENES) - 1), each.draw.uniform(0.0, _LONGEST)
    begun = threading.Event()

    def batch() -> BatchEvent | None:
        started, last = 0, None
        try:
            for last in render(_SCENES, running.client(timeout=LONGEST), each.folder, wait=lambda attempt: 0.5):
                if isinstance(last, StageStarted) and last.attempt == 1:
                    started += 1
                    if started > victim:
                        begun.set()
        finally:
            begun.set()
        return last

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(batch)
        begun.wait()
        time.sleep(delay)  # the moment is random
        _end_and_start(each, running, sign)
        last = ending.result()
    if not isinstance(last, BatchFinished) or (last.done, last.failed) != (len(_SCENES), 0):
        raise Wrong(f"not all is done: {last}")
    check(pictures_and_clips(each.folder) == expected, "not the files of an undisturbed batch")
    check(running.key_file.read_text() != keys, "the keys are the old ones")
    each.report.count_of(f"{sign.name}, {running.kind}")
    each.report.count_of("in mid-batch, requests sent again", last.requests > 2 * len(_SCENES))


def _end_and_start(each: Round, running: Served, sign: signal.Signals) -> None:
    before = processes(running)
    (java,), workers = before.java, before.workers
    began = time.monotonic()
    java.send_signal(sign)
    lasting = alive_after([java], seconds=60)
    each.report.measure("server gone after", time.monotonic() - began)
    began = time.monotonic()
    alive = alive_after(workers, seconds=30)
    each.report.measure("workers gone after it", time.monotonic() - began)
    running.process.stop()
    began = time.monotonic()
    start(running)
    each.report.measure(f"ready again after, {running.kind}", time.monotonic() - began)
    check(workers and not alive + lasting, f"workers {workers}, alive long after {sign.name}: {alive + lasting}")


CASE = Case(
    "F2",
    "server ended in mid-batch (SIGTERM, SIGKILL in turn), started again with new keys",
    "nothing lost, no worker alive 2 s after the server's end",
    count=50,
    short=2,
    run=_run,
    unit="restarts",
)

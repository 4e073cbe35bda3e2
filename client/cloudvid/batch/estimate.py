"""How long a batch takes and what is left of it: one estimate for plans, runs, their events and the gallery.

A request's work is its pixels: each step costs so many seconds per million of them, and so does the rest (decoding,
encoding, the way back). The server has measured both before; the batch's own steps correct that while it runs. The time
left is that of a schedule like the engine's: pictures in order, each clip once its picture and a worker are there.
"""

import heapq
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cloudvid.batch.scenes import Scene
from cloudvid.batch.store import pixels
from cloudvid_schema.protocol import Description, Phase, Request, Stage
from cloudvid_schema.sizes import DEFAULT_FRAMES

_PRIOR_SHARE = 0.05
"""Of a batch's work, as much as the server's own measurement counts."""
_MOST_RISE, _RISE_SECONDS, _FAR = 1.1, 10.0, 1.3
_LEAST = 3
"""Steps that tell a pace where nothing was known before: events come in bursts."""
_LEARNING = 0.1
"""Share of the time."""
_SCHEDULE_SECONDS = 0.5
"""Between two schedules, each of which goes through the whole batch."""


@dataclass
class Task:
    """A file to make, as far as it is."""

    scene: str
    stage: Stage
    megapixels: float
    """Of all frames together."""
    steps: int
    done: int = 0
    """Steps."""
    decoded: float = 0.0
    """Share of the rest."""
    since: float | None = None
    """Time of the last step; None before the first."""

    @classmethod
    def of(cls, scene: Scene, request: Request, description: Description | None) -> "Task":
        """A request of a scene, to a stage whose workers describe themselves so."""
        frames = (description.num_frames if description else None) or DEFAULT_FRAMES
        megapixels = pixels(request, scene.t2i_params, frames) / 1e6
        return cls(scene.id, request.stage, megapixels, request.num_inference_steps)


class _Pace:
    """Seconds per unit of work: what was measured before the batch, and in it, where at least so often."""

    def __init__(self, before: float | None, expected: float, least: int) -> None:
        weight = 0.0 if before is None else _PRIOR_SHARE * expected
        self._seconds, self._units, self._lacking = (before or 0.0) * weight, weight, 0 if weight else least

    def observe(self, seconds: float, units: float) -> None:
        self._seconds += seconds
        self._units += units
        self._lacking -= 1

    @property
    def value(self) -> float | None:
        return self._seconds / self._units if self._units and self._lacking <= 0 else None


class Estimate:
    """The time that is left of a batch.

    Args:
        tasks: files to make, in the order of the scenes.
        described: what the stages' workers say of themselves, where it is known.
        workers: how many each stage has; default: 1.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        described: Mapping[Stage, Description | None],
        workers: Mapping[Stage, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = {(task.scene, task.stage): task for task in tasks}
        self._clock, self.workers = clock, workers
        self._steps: dict[Stage, _Pace] = {}
        self._rest: dict[Stage, _Pace] = {}
        for stage in Stage:
            mine = [task for task in self._tasks.values() if task.stage is stage]
            told = described.get(stage)
            before = told.seconds if told else {}
            self._steps[stage] = _Pace(
                before.get("denoise"), sum(task.megapixels * task.steps for task in mine), _LEAST
            )
            self._rest[stage] = _Pace(before.get("decode"), sum(task.megapixels for task in mine), 1)
        self._shown: float | None = None
        self._began = self._rose_at = clock()
        self._scheduled_at = self._began - _SCHEDULE_SECONDS

    def begin(self, task: Task) -> None:
        """A request is sent, perhaps again."""
        self._tasks[task.scene, task.stage] = task

    def step(self, scene: str, stage: Stage, phase: Phase, step: int, steps: int) -> None:
        """A step is done."""
        task, now = self._tasks.get((scene, stage)), self._clock()
        if task is None or phase == "encode":
            return
        if phase == "decode":
            if task.since is not None:
                self._rest[stage].observe(now - task.since, task.megapixels * (step / steps - task.decoded))
            task.decoded, task.since = step / steps, now
            return
        if task.since is not None:  # the time before the first step was spent in the queue, too
            self._steps[stage].observe(now - task.since, task.megapixels)
        task.done, task.steps, task.since = step, steps, now

    def end(self, scene: str, stage: Stage) -> None:
        """A file is there."""
        task = self._tasks.pop((scene, stage), None)
        if task and task.since is not None:
            self._rest[stage].observe(self._clock() - task.since, task.megapixels * (1 - task.decoded))

    def drop(self, scene: str) -> None:
        """Nothing more is made of a scene."""
        for stage in Stage:
            self._tasks.pop((scene, stage), None)

    def left(self) -> float | None:
        """Seconds; None where a stage's pace is not known yet.

        After the first tenth, in which the pace is learned, it falls; it rises slowly if it has to, and at once only
        if it is far from the truth.
        """
        now = self._clock()
        if self._shown is not None and now - self._scheduled_at < _SCHEDULE_SECONDS:
            return self._shown
        raw, self._scheduled_at = self.seconds(), now
        is_learning = raw is not None and now - self._began < _LEARNING * (now - self._began + raw)
        if raw is None or self._shown is None or is_learning or raw > self._shown * _FAR:
            self._shown, self._rose_at = raw, now
        elif raw <= self._shown * _MOST_RISE:
            self._shown = min(self._shown, raw)
        elif now - self._rose_at >= _RISE_SECONDS:
            self._shown, self._rose_at = self._shown * _MOST_RISE, now
        return self._shown

    def seconds(self) -> float | None:
        """Length of the schedule as it looks now."""
        ready: dict[str, float] = {}
        ends = 0.0
        for stage in Stage:  # the pictures first: they decide when clips can begin
            free = [0.0] * max(1, self.workers.get(stage, 1))
            tasks = [task for task in self._tasks.values() if task.stage is stage]
            for task in sorted(tasks, key=lambda task: (task.since is None, ready.get(task.scene, 0.0))):
                seconds = self._seconds(task)
                if seconds is None:
                    return None
                ready[task.scene] = max(heapq.heappop(free), ready.get(task.scene, 0.0)) + seconds
                heapq.heappush(free, ready[task.scene])
            ends = max(ends, *free)
        return ends

    def _seconds(self, task: Task) -> float | None:
        """What is left of a file, on one worker."""
        step, rest = self._steps[task.stage].value, self._rest[task.stage].value
        if step is None or rest is None:
            return None  # decoding takes as long as one step or as thirty: no guess is better than a wrong one
        rest *= 1 - task.decoded
        now_at = step if task.done < task.steps else rest
        gone = 0.0 if task.since is None else min(self._clock() - task.since, task.megapixels * now_at)
        return task.megapixels * ((task.steps - task.done) * step + rest) - gone


def duration(seconds: float) -> str:
    """A time as people read it: `0:12:30`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

"""What both stages share: loading, warming up, carrying out requests with each one's own outcome, what they report."""

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import torch
from pydantic import BaseModel, ValidationError

from cloudvid_schema.faults import faults_of
from cloudvid_schema.parameters import MAX_SEED
from cloudvid_schema.protocol import Description, Phase, RequestError, Stage
from cloudvid_serving.jobs import Cancelled, Job, Output, WorkerUnfit
from cloudvid_stages.gpu import gpu_gauges
from cloudvid_stages.loading import LoadedPipeline, load_pipeline
from cloudvid_stages.memory import device_faults, peak_bytes
from cloudvid_stages.recipe import make_recipe
from cloudvid_stages.settings import SettingsError, StageSettings, read_settings
from cloudvid_stages.speed import graphs_compiled

logger = logging.getLogger(__name__)
SettingsKind = TypeVar("SettingsKind", bound=StageSettings)
AcceptedJob = TypeVar("AcceptedJob", bound=Job)


def average(seconds: dict[str, float], timings: dict[str, float], pixels: int, steps: int) -> None:
    """Update the seconds per million pixels of each phase with the timings (milliseconds) of a request of so many
    pixels over all frames, and denoising steps; the last ten requests or so count most.
    """
    for phase, per in (("denoise", steps), ("decode", 1)):
        if phase in timings:
            new = timings[phase] / 1000 / per / (pixels / 1e6)
            old = seconds.get(phase, new)
            seconds[phase] = old + (new - old) * 0.1


@dataclass
class Stopwatch:
    """Times the phases of one call of a pipeline, passes its steps on, and ends it once all its jobs are cancelled."""

    device: torch.device
    jobs: Sequence[Job]
    timings: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=perf_counter)

    def step(self, phase: Phase, step: int, steps: int) -> None:
        """A step is done: what has passed since the last one belongs to its phase.

        Raises:
            Cancelled: all of the jobs were.
        """
        if step == steps and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # work that is only queued belongs to the phase that queued it
        now = perf_counter()
        self.timings[phase] = self.timings.get(phase, 0.0) + (now - self._since) * 1000
        self._since = now
        for job in self.jobs:
            job.on_step(phase, step, steps)
        if all(job.is_cancelled() for job in self.jobs):
            raise Cancelled

    def after_step(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Diffusers' `callback_on_step_end`."""
        self.step("denoise", step + 1, pipeline.num_timesteps)
        return tensors


def generator(seed: int) -> torch.Generator:
    """A request's own generator. On the CPU, so that the starting noise is the same on every device."""
    return torch.Generator("cpu").manual_seed(seed)


class PipelineStage(ABC, Generic[SettingsKind, AcceptedJob]):
    """A loaded model and how requests become files with it. A subclass names the parts and carries out the requests."""

    stage: ClassVar[Stage]
    batches: ClassVar[bool] = False
    smallest: ClassVar[str]
    """Size of the cheapest request, as in the setting `warm_up`."""

    def __init__(self, loaded: LoadedPipeline, settings: SettingsKind) -> None:
        self._loaded = loaded
        self._pipeline = loaded.pipeline
        self._settings = settings
        self._seconds: dict[str, float] = {}
        self.identity = loaded.identity
        self.device = str(loaded.device)

    @classmethod
    def load(cls, section: Mapping[str, Any], gpu_id: int | None) -> Self:
        """Load the model that the settings name, and warm it up.

        Args:
            section: the `handler:` section of the archive's YAML.
            gpu_id: the GPU that the server dealt this worker; None or -1 for none.

        Raises:
            SettingsError: a setting is wrong or without effect, or the model cannot be used.
        """
        settings = cast(SettingsKind, read_settings(cls.stage, section))
        has_gpu = gpu_id is not None and gpu_id >= 0 and torch.cuda.is_available()
        stage = cls(load_pipeline(cls.stage, settings, f"cuda:{gpu_id}" if has_gpu else "cpu"), settings)
        stage._warm_up()
        return stage

    def describe(self) -> Description:
        """What this worker says of itself."""
        tokenizer = getattr(self._pipeline, "tokenizer", None)
        return Description(
            stage=self.stage,
            model=self.identity,
            seconds=self._seconds,
            device=self.device,
            precision=self._loaded.precision,
            settings=self._settings.in_force(),
            limits=self._settings.limits,
            peak_memory=peak_bytes(self._loaded.device),
            num_frames=self._pipeline.unet.config.get("num_frames"),
            vocabulary=None if self._loaded.vocabulary is None else sorted(self._loaded.vocabulary),
            prompt_tokens=None if tokenizer is None else tokenizer.model_max_length - 2,  # beside its start and end
        )

    def gauges(self) -> Mapping[str, float]:
        """What is measured of the device now, by name."""
        return {"peak_memory_bytes": peak_bytes(self._loaded.device), **gpu_gauges(self._loaded.device)}

    def run(self, jobs: Sequence[Job]) -> list[Output | Exception]:
        """Carry out some requests, each with its own outcome, in their order.

        Raises:
            WorkerUnfit: the process has to end.
        """
        outcomes: dict[int, Output | Exception] = {}
        groups: dict[Hashable, list[tuple[int, AcceptedJob]]] = {}
        for index, job in enumerate(jobs):
            try:
                seed = job.request.seed
                if seed is None:
                    seed = random.SystemRandom().randint(0, MAX_SEED)  # moves no global generator
                accepted = self._accept(replace(job, request=job.request.model_copy(update={"seed": seed})))
                job.on_start(seed, self.identity)
                groups.setdefault(self._kind(accepted), []).append((index, accepted))
            except Exception as error:  # whatever it is, it is this request's outcome
                outcomes[index] = error
        for group in groups.values():
            wanted = [(index, accepted) for index, accepted in group if not accepted.is_cancelled()]
            outcomes |= {index: RequestError.cancelled() for index, _ in group} | self._run_group(wanted)
        return [outcomes[index] for index in range(len(jobs))]

    def _run_group(self, group: list[tuple[int, AcceptedJob]]) -> dict[int, Output | Exception]:
        """Carry out a group; where it fails, each half on its own, so that an error finds the request it belongs to."""
        if not group:
            return {}
        # Offloaded weights are created again in each call and outlive it: no tensor of inference mode may.
        no_gradients = torch.inference_mode if self._settings.offload == "none" else torch.no_grad
        try:
            with device_faults(self._loaded.device), no_gradients():
                outcomes = self._carry_out([accepted for _, accepted in group])
            return {
                index: RequestError.cancelled() if accepted.is_cancelled() else outcome
                for (index, accepted), outcome in zip(group, outcomes, strict=True)
            }
        except WorkerUnfit:
            raise
        except Cancelled:
            return {index: RequestError.cancelled() for index, _ in group}
        except Exception as error:  # as above
            if len(group) == 1:
                return {group[0][0]: error}
            ran_out = isinstance(error, RequestError)  # of memory: the only one that a pipeline's call ends with
            logger.warning("%d requests failed together (%s): once more in halves", len(group), type(error).__name__)
        half = len(group) // 2
        done = self._run_group(group[:half]) | self._run_group(group[half:])
        if ran_out:
            for index, outcome in done.items():
                if isinstance(outcome, Output):
                    done[index] = replace(outcome, memory_retries=outcome.memory_retries + 1)
                    break
        return done

    @abstractmethod
    def _accept(self, job: Job) -> AcceptedJob:
        """A job, which has a seed, with all that is known before the model runs.

        Raises:
            RequestError: 413 or 422; it is over a limit, or its picture cannot be used.
        """

    def _kind(self, accepted: AcceptedJob) -> Hashable:
        """Requests of the same kind are carried out together. By default each is of a kind of its own."""
        return id(accepted)

    @abstractmethod
    def _carry_out(self, group: Sequence[AcceptedJob]) -> Sequence[Output | Exception]:
        """Make the files of some accepted requests of the same kind in one call of the pipeline."""

    @contextmanager
    def _call(self, group: Sequence[Job]) -> Iterator[Stopwatch]:
        """The time of one call of the pipeline; whatever ends it, the next one finds everything as it was."""
        try:
            yield Stopwatch(self._loaded.device, group)
        finally:
            self._forget_features()
            if self._pipeline.vae.dtype != self._loaded.dtype:
                self._pipeline.vae.to(dtype=self._loaded.dtype)  # SVD's pipeline works with it in fp32 for a while
            if self._settings.offload == "model":
                self._pipeline.maybe_free_model_hooks()

    def _forget_features(self) -> None:
        """What DeepCache keeps belongs to a single denoising."""
        if self._loaded.deep_cache:
            self._loaded.deep_cache.reset()

    def _recipe(self, request: Any, batch_size: int = 1, **in_force: Any) -> dict[str, Any]:
        """The recipe of a request's file: its parameters, with those in force, and all else that shapes the pixels."""
        made_with: dict[str, Any] = {"model": self.identity, "precision": self._loaded.precision}
        if shaping := self._settings.shaping():
            made_with["settings"] = shaping
        if batch_size > 1:
            made_with["batch_size"] = batch_size
        return make_recipe(self.stage, request, made_with, **in_force)

    @abstractmethod
    def _warm_up_job(self, size: Sequence[int], steps: int) -> Job:
        """A request of a size, or of the usual one where it is empty.

        Raises:
            ValueError: that is no size of this stage.
        """

    def _warm_up(self) -> None:
        """Run each configured size once, and see that what was to be compiled was.

        Raises:
            SettingsError: a size is wrong, a run fails, or nothing was compiled.
        """
        compiles, cache = self._settings.compile != "off", self._loaded.deep_cache
        needs_proof = cache is not None or self._settings.offload != "none"
        sizes = self._settings.warm_up or (("",) if compiles else (self.smallest,) if needs_proof else ())
        before = graphs_compiled() if compiles else 0
        for size in sizes:
            began = perf_counter()
            try:
                numbers = [int(part) for part in size.split("x")] if size else []
                job = self._warm_up_job(numbers, steps=2 if cache else 1)
            except ValueError as error:
                rule = "; ".join(map(str, faults_of(error, BaseModel))) if isinstance(error, ValidationError) else error
                raise SettingsError(f"warm_up: {size!r} is no size of {self.stage}: {rule}") from None
            (outcome,) = self.run([job])
            if isinstance(outcome, Exception):
                name = size or "the usual size, where warm_up names none,"
                raise SettingsError(f"warm_up: {name} fails: {outcome}") from outcome
            logger.info("%s is warm at %s after %.1f s", self.stage, size or "its usual size", perf_counter() - began)
        if compiles and graphs_compiled() == before:
            raise SettingsError(f"compile: {self._settings.compile} compiled nothing")
        if cache and not cache.reused:
            raise SettingsError("deep_cache left nothing out")
        self._seconds = {}  # compiling is no measure of a step

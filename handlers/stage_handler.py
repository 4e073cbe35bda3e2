"""The TorchServe adapter, and the only file that knows TorchServe.

A handler reads TorchServe's rows into a `Body`, lets its stage run it, and writes file, headers, events or error body
back. Errors are answered per request: TorchServe turns a raised exception into a 503 without its text, for the whole
batch. Nothing of a request is printed: TorchServe obeys worker output that looks like `[PID]` or `[METRICS]`.
"""

import base64
import gc
import hashlib
import json
import logging
import os
import pkgutil
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import product
from typing import Any, ClassVar, get_args

from ts.context import Context
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.metrics.metric_type_enum import MetricTypes

from cloudvid_schema import protocol
from cloudvid_schema.faults import Fault
from cloudvid_schema.processes import end_with
from cloudvid_schema.protocol import ErrorBody, Failed, Phase, Progress, RequestError, Result, Stage, Started
from cloudvid_serving import bodies, descriptions
from cloudvid_serving.job_files import JobFiles, RunningJob
from cloudvid_serving.jobs import Job, LoadedStage, Output, WorkerUnfit
from cloudvid_serving.request_log import RequestLog
from cloudvid_serving.worker_starts import WorkerStarts

logger = logging.getLogger(__name__)
Row = Mapping[str, bytes | bytearray]


class StageHandler:
    """Serves one stage; a subclass names it."""

    stage_class: ClassVar[str]
    """A `LoadedStage`, as `module:class`: imported by `initialize`, which sees to how that is done."""

    def initialize(self, context: Context) -> None:
        """Load the stage's model. Called once a worker, before its first request.

        Raises:
            ValueError: the archive's YAML asks for batches of a stage that has none, or the environment for a form of
                the log that there is not.
        """
        # Bodies arrive as the bytes that were sent: TorchServe's own decoding accepts duplicate keys and logs failures.
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        self._log = RequestLog(os.environ)
        # A server that is killed outright would leave this worker behind with its job, and the GPU's memory.
        end_with(os.getppid(), lambda: os._exit(1))
        # What is imported stays: the collector's passes over all of it are a sixth of a worker's start, and more would
        # come amid requests.
        gc.disable()
        try:
            stage_class: type[LoadedStage] = pkgutil.resolve_name(self.stage_class)
        finally:
            gc.freeze()
            gc.enable()
        stage = stage_class.stage
        WorkerStarts().note(stage, sys.argv)
        if int(context.system_properties.get("batch_size") or 1) > 1 and not stage_class.batches:
            raise ValueError(f"{stage}.yaml: batchSize must be 1; {stage} carries out one request at a time")
        section = (context.model_yaml_config or {}).get("handler", {})
        self._loaded = stage_class.load(section, context.system_properties.get("gpu_id"))
        self._metrics = _Metrics(context.metrics, self._loaded)
        self._files = JobFiles()
        self._describe()
        logger.info("%s is loaded: %s", stage, self._loaded.identity)

    def _describe(self) -> None:
        try:
            descriptions.put(self._loaded.describe())
        except Exception:  # whatever a driver does, the requests are answered
            logger.warning("the worker cannot describe itself", exc_info=True)

    def handle(self, rows: list[Row], context: Context) -> list[bytes]:
        """Answer a batch of requests, each on its own."""
        stage = self._loaded.stage
        answers: dict[int, bytes] = {}
        jobs: dict[int, Job] = {}
        replies: dict[int, _Reply] = {}
        for index, row in enumerate(rows):
            headers = _headers(context, index)
            if headers.get("describe") == "True" and not row:  # GET /models/{stage}?customized=true (management)
                answers[index] = self._loaded.describe().model_dump_json().encode()
                continue
            streams = _wants_stream(headers.get("accept", ""))
            request_id = _request_id(headers, context, index)
            reply = replies[index] = _Reply(self._loaded, self._metrics, self._log, context, index, streams, request_id)
            try:
                reply.job_id = _job_id(headers, context, index)
                reply.job = RunningJob(self._files, reply.job_id, stage)
                read = bodies.read(stage, _body(stage, row, headers))
                reply.asked = read[0]
                jobs[index] = Job(*read, reply.started, reply.progress, reply.job.is_cancelled)
            except Exception as error:  # the boundary: whatever happens in a request becomes its answer
                answers[index] = reply.end(error)
        try:
            outcomes = self._loaded.run(list(jobs.values()))
        except WorkerUnfit:
            logger.critical("this worker cannot go on and ends, to be replaced", exc_info=True)
            for index in jobs:
                replies[index].log_end("worker_ended")
            end_at_once()  # nothing that runs at an orderly exit may touch the device
        for index, outcome in zip(jobs, outcomes, strict=True):
            answers[index] = replies[index].end(outcome)
        if jobs:
            self._metrics.measure()
            self._describe()
        return [answers[index] for index in range(len(rows))]


@dataclass
class _Reply:
    """The answer to one request: the file, or a stream of events as NDJSON. The status of a stream goes out with its
    first line, so a later error is an event.
    """

    loaded: LoadedStage
    metrics: "_Metrics"
    log: RequestLog
    context: Context
    index: int
    streams: bool
    request_id: str
    has_begun: bool = False
    job_id: str | None = None
    job: RunningJob | None = None
    asked: Any = None
    """The validated request."""
    seed: int | None = None
    arrived: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.context.set_response_header(self.index, protocol.GIVEN_ID_HEADER, self.request_id)

    def started(self, seed: int, model: str) -> None:
        self.seed = seed
        self._send(Started(stage=self.loaded.stage, seed=seed, model=model))

    def progress(self, phase: Phase, step: int, steps: int) -> None:
        if self.job:
            self.job.on_step(phase, step, steps)
        self._send(Progress(phase=phase, step=step, steps=steps))

    def _send(self, event: Started | Progress) -> None:
        if self.streams:
            line = {self.index: self._line(event)}
            self.has_begun = True
            request_ids = {self.index: self.context.get_request_id(self.index)}
            send_intermediate_predict_response(line, request_ids, "stream", 200, self.context)

    def _line(self, event: Started | Progress | Result | Failed) -> bytes:
        self.context.set_response_content_type(self.index, protocol.NDJSON)
        return event.model_dump_json().encode() + b"\n"

    def end(self, outcome: Output | Exception) -> bytes:
        """The answer, or what of it was not sent yet."""
        try:
            if isinstance(outcome, Exception):
                raise outcome
            return self._file(outcome)
        except Exception as error:  # the boundary, as above
            return self._failure(_error_body(error))
        finally:
            if self.job:
                self.job.end()

    def log_end(
        self, outcome: str, code: int | None = None, error: str | None = None, output: Output | None = None
    ) -> None:
        """Write the request's line in the log."""
        values = output.recipe.get("parameters", {}) if output else self.asked.model_dump() if self.asked else {}
        size = values.get("width"), values.get("height")
        timings = output.timings if output else {}
        self.log.write(
            request=self.request_id,
            job=self.job_id,
            stage=str(self.loaded.stage),
            outcome=outcome,
            code=code,
            error=error,
            seed=output.seed if output else self.seed,
            size="{}x{}".format(*size) if all(size) else None,
            frames=values.get("num_frames"),
            steps=values.get("num_inference_steps"),
            seconds=round(time.monotonic() - self.arrived, 3),
            **{f"{phase}_seconds": round(took / 1000, 3) for phase, took in timings.items()},
        )

    def _file(self, output: Output) -> bytes:
        self.metrics.done(output)
        self.log_end("done", 200, output=output)
        digest, model = hashlib.sha256(output.data), self.loaded.identity
        if self.streams:
            return self._line(Result(**vars(output), size=len(output.data), sha256=digest.hexdigest(), model=model))
        self.context.set_response_content_type(self.index, output.media_type)
        headers = {
            protocol.SEED_HEADER: str(output.seed),
            protocol.MODEL_HEADER: model,
            protocol.DIGEST_HEADER: f"sha-256=:{base64.b64encode(digest.digest()).decode()}:",
            protocol.TIMING_HEADER: ", ".join(f"{phase};dur={took:.1f}" for phase, took in output.timings.items()),
        }
        if output.warnings:
            headers[protocol.WARNINGS_HEADER] = json.dumps(output.warnings)
        for name, value in headers.items():
            self.context.set_response_header(self.index, name, value)
        return output.data

    def _failure(self, body: ErrorBody) -> bytes:
        outcome = _OUTCOMES.get(body.code, "refused")
        self.metrics.failed(outcome)
        self.log_end(outcome, body.code, body.type)
        if self.has_begun:
            return self._line(Failed(**body.model_dump()))
        self.context.set_response_status(body.code, HTTPStatus(body.code).phrase, self.index)
        self.context.set_response_content_type(self.index, protocol.JSON)
        return body.model_dump_json().encode()


_OUTCOMES = {409: "cancelled", 500: "failed", 507: "out_of_memory"}
"""Of a request that is not done, by the answer's status; any other was refused by its own fault."""
_COUNTERS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "cloudvid_requests_total": ("Count", {"outcome": ("done", *_OUTCOMES.values(), "refused")}),
    "cloudvid_phase_seconds_total": ("Seconds", {"phase": get_args(Phase)}),
    "cloudvid_steps_total": ("Count", {}),
    "cloudvid_frames_total": ("Count", {}),
    "cloudvid_memory_retries_total": ("Count", {}),
}
"""Counters in Prometheus' form: the unit, and the labels beside the stage. Gauges are `cloudvid_` and the names of the
stage's own, by stage and device."""


class _Metrics:
    """What is counted, in TorchServe's metrics; its `model_metrics_auto_detect` takes them as they come."""

    def __init__(self, store: Any, stage: LoadedStage) -> None:
        self._store, self._stage = store, stage
        self._gauges: dict[str, Any] = {}
        self._counters: dict[str, Any] = {}
        for name, (unit, values) in _COUNTERS.items():
            self._counters[name] = store.add_metric_to_cache(name, unit, ["stage", *values], MetricTypes.COUNTER)
            for labels in product(*values.values()):
                self._count(name, 0, *labels)  # so that a scrape finds it before the first request
        self.measure()

    def done(self, output: Output) -> None:
        for phase, milliseconds in output.timings.items():
            self._count("cloudvid_phase_seconds_total", milliseconds / 1000 / output.together, phase)
        self._count("cloudvid_requests_total", 1, "done")
        self._count("cloudvid_steps_total", output.steps)
        self._count("cloudvid_frames_total", output.frames)
        self._count("cloudvid_memory_retries_total", output.memory_retries)

    def failed(self, outcome: str) -> None:
        self._count("cloudvid_requests_total", 1, outcome)

    def _count(self, name: str, value: float, *dimensions: str) -> None:
        self._counters[name].add_or_update(value, [str(self._stage.stage), *dimensions])

    def measure(self) -> None:
        try:
            gauges = self._stage.gauges()
        except Exception:  # whatever a driver does, the requests are answered
            logger.warning("the device cannot be measured", exc_info=True)
            return
        device = self._stage.device.replace(":", "")  # TorchServe drops a dimension whose value has a colon
        for name, value in gauges.items():
            if name not in self._gauges:
                unit, labels = name.rpartition("_")[2], ["stage", "device"]
                self._gauges[name] = self._store.add_metric_to_cache(
                    f"cloudvid_{name}", unit, labels, MetricTypes.GAUGE
                )
            self._gauges[name].add_or_update(value, [str(self._stage.stage), device])


def end_at_once() -> None:
    """End this process without Python's own clean-up, which takes seconds with torch and keeps the GPU's memory."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)  # as TorchServe's worker ends, once its server has closed the connection


def _request_id(headers: Mapping[str, str], context: Context, index: int) -> str:
    """The id that the sender, or a proxy, gave the request, or else TorchServe's own."""
    given = headers.get(protocol.REQUEST_ID_HEADER.lower(), "")
    return given if re.fullmatch(protocol.REQUEST_ID, given) else str(context.get_request_id(index))


def _job_id(headers: Mapping[str, str], context: Context, index: int) -> str:
    """The id that the sender gave the job, or else TorchServe's own of the request.

    Raises:
        RequestError: 422; it is no id.
    """
    job = headers.get(protocol.JOB_HEADER.lower()) or str(context.get_request_id(index))
    if not re.fullmatch(protocol.JOB_ID, job):
        raise RequestError.invalid([Fault(protocol.JOB_HEADER, f"must be {protocol.JOB_ID_RULE}", job)])
    return job


def _headers(context: Context, index: int) -> dict[str, str]:
    """The request's headers by lower-case name; TorchServe keeps the sender's case and mixes in those of form parts."""
    sent = context.get_all_request_header(index)
    return {name.lower(): value for name, value in sent.items() if isinstance(value, str)}


def _wants_stream(accept: str) -> bool:
    """Whether a header names events as acceptable, and not by a quality of 0 as unacceptable."""
    for kind in accept.lower().split(","):
        name, *parameters = (part.replace(" ", "") for part in kind.split(";"))
        if name == protocol.NDJSON and not any(re.fullmatch(r"q=0(\.0*)?", part) for part in parameters):
            return True
    return False


def _body(stage: Stage, row: Row, headers: Mapping[str, str]) -> bodies.Body:
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    fields = {name: bytes(value) for name, value in row.items()}
    # TorchServe passes a query on at /invocations, with model_name in it, and drops it at /predictions without a word.
    has_query = fields.get("model_name") == stage.encode()
    if has_query:
        del fields["model_name"]
    elif content_type in protocol.IMAGE_TYPES:
        raise RequestError(
            400,
            "QueryNotPassedOn",
            "TorchServe drops the query string of /predictions, and with it the parameters of a picture sent as body; "
            f"send it to /invocations?model_name={stage}&... or as multipart/form-data",
        )
    if content_type == protocol.MULTIPART and "body" in fields and protocol.MULTIPART not in headers["content-type"]:
        rule = f"TorchServe reads a form only if its Content-Type is in lower case: {protocol.MULTIPART}"
        raise RequestError(415, "UnsupportedMediaType", rule)
    content = b"" if content_type == protocol.MULTIPART else fields.pop("body", b"")
    return bodies.Body(content_type, fields, content)


def _error_body(error: Exception) -> ErrorBody:
    """The answer to an error; one that is no fault of the request is logged with its traceback."""
    if isinstance(error, RequestError):
        return error.body
    logger.error("the request failed", exc_info=error)
    if isinstance(error, MemoryError):
        return RequestError(507, "OutOfMemory", "out of memory; ask for fewer pixels or frames").body
    message = f"the stage failed ({type(error).__name__}); the worker's log says why"
    return RequestError(500, "StageFailed", message).body

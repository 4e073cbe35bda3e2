"""How stages look: a row each, in columns, or one line."""

from collections.abc import Sequence

from cloudvid.answers import plain
from cloudvid.errors import CloudVidError
from cloudvid.stage_status import StageStatus
from cloudvid_schema.protocol import Stage

HEADINGS = ("stage", "workers", "queue", "device", "dtype", "s/step/Mpx", "memory", "model")
_COMMIT = 12  # characters of a commit that tell it from others
_UNKNOWN = "-"


def workers_text(seen: StageStatus) -> str:
    """`2 ready, 1 loading`."""
    counts = {"ready": seen.ready, "loading": seen.loading, "dead": seen.dead}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"


def table(stages: Sequence[Stage], found: dict[Stage, StageStatus | CloudVidError]) -> str:
    """A row for each stage, in columns, and below them what has to be said."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    notes = []
    for stage in stages:
        seen = found[stage]
        if isinstance(seen, CloudVidError):
            rows.append((stage, "unknown", *[_UNKNOWN] * (len(HEADINGS) - 2)))
            notes.append(f"{stage}: {seen}")
        else:
            rows.append(tuple(plain(cell) for cell in _row(seen)))
            notes += _notes(seen)
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *dict.fromkeys(notes)])


def _row(seen: StageStatus) -> tuple[str, ...]:
    told = seen.description
    pace = told.seconds.get("denoise") if told else None
    unknown = "busy" if seen.busy else _UNKNOWN
    return (
        seen.stage,
        workers_text(seen),
        str(seen.queue),
        (told.device if told else "") or _gpus(seen) or _UNKNOWN,
        (told.precision if told else "") or _UNKNOWN,
        f"{pace:.2f}" if pace is not None else _UNKNOWN,
        _memory(seen),
        _model(told.model) if told else unknown,
    )


def _model(identity: str) -> str:
    name, at, revision = identity.partition("@")
    return name + at + revision[:_COMMIT]


def _gpus(seen: StageStatus) -> str:
    return ",".join(f"cuda:{gpu}" for gpu in sorted({worker.gpu for worker in seen.workers if worker.gpu is not None}))


def _memory(seen: StageStatus) -> str:
    """Resident memory of all workers, what is in use on their GPUs, and the most that one worker has held."""
    resident = sum(worker.memory or 0 for worker in seen.workers)
    # Workers on one GPU each see all of what is in use there.
    gpus = {worker.gpu: worker.gpu_memory for worker in seen.workers if worker.gpu_memory is not None}
    parts = [f"{_gigabytes(resident)}"] * bool(resident)
    parts += [f"GPU {_gigabytes(sum(gpus.values()))}"] * bool(gpus)
    peak = seen.description.peak_memory if seen.description else None
    parts += [f"peak {_gigabytes(peak)}"] if peak else []
    return ", ".join(parts) or _UNKNOWN


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _notes(seen: StageStatus) -> list[str]:
    notes = []
    if not seen.workers:
        notes.append(
            f"{seen.stage} has no workers: its requests are refused; `cloudvid scale {seen.stage} 1` starts one"
        )
    if seen.unhealthy:
        again = "once the log's reason is mended, `cloudvid scale STAGE N` replaces it"
        notes.append(f"{seen.server}: a worker does not come up and was given up; {again}")
    return notes

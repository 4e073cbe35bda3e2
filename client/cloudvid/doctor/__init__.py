"""What is wrong with this machine, this folder and the server, each with its remedy.

A check is a function from a `Place` to findings; it is added by adding it to `CHECKS`.
"""

from collections.abc import Callable, Iterator, Sequence

from cloudvid.doctor import machine, models, server
from cloudvid.doctor.findings import Finding, Place

__all__ = ["CHECKS", "Check", "Finding", "Place", "examine"]

Check = Callable[[Place], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    machine.python,
    machine.java,
    machine.torch,
    machine.driver,
    machine.memory,
    machine.disk,
    machine.ffmpeg,
    models.archives,
    models.weights,
    server.ports,
    server.key,
    server.endpoints,
)


def examine(place: Place, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """What each check finds, as it finds it. One that fails itself is a finding too, and stops no other."""
    for check in checks:
        try:
            yield from check(place)
        except Exception as error:  # a machine that is broken in a way that nobody thought of is what this is for
            found = f"could not be looked at ({type(error).__name__}: {error})"
            yield Finding(check=check.__name__, level="problem", found=found, remedy="please report this")

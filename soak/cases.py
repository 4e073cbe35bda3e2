"""All cases, in the order of the table."""

from importlib import import_module

from soak.case import Case

_MODULES = (
    "load", "bursts", "killed_workers", "restarts", "stalls", "unloadable", "killed_clients", "full_disks",
    "grammar", "fuzz", "contract", "raw_http", "hostile", "network",
)  # fmt: skip


CASES: dict[str, Case] = {(case := import_module(f"soak.{name}").CASE).id: case for name in _MODULES}
"""By id."""

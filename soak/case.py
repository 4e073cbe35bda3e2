"""A case: one line of the suite's table."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soak.report import Report


class Wrong(AssertionError):
    """What was promised did not hold."""


def check(holds: object, text: object) -> None:
    """Fail the round where something does not hold.

    Raises:
        Wrong: it does not.
    """
    if not holds:
        raise Wrong(text)


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        id: e.g. F5.
        what: in a few words, for the table.
        passes: when it passes, for the table.
        count: rounds in the whole suite.
        short: rounds in `make test`.
        run: carries it out.
        unit: what a round is, in the plural.
        needs: packages of requirements/soak.txt, by their import names.
        why_not: why this machine cannot run it; empty where it can.
    """

    id: str
    what: str
    passes: str
    count: int
    short: int
    run: "Callable[[Report], None]"
    unit: str = "rounds"
    needs: tuple[str, ...] = ()
    why_not: Callable[[], str] = lambda: ""

    def obstacle(self) -> str:
        """Why it cannot be run here; empty where it can."""
        if missing := [name for name in self.needs if importlib.util.find_spec(name) is None]:
            return f"{', '.join(missing)} not installed (requirements/soak.txt)"
        return self.why_not()

"""S1: the tests' checks of who gets in and of what is hostile, with other draws, and on a server of the soak."""

from collections.abc import Callable

import pytest

from soak.rounds import Round, Rounds, case
from support import exposure
from support.hostility import CHECKS
from support.proxies import needs_nginx
from support.servers import Running


def _check_routes(running: Running, each: Round) -> None:
    exposure.check_routes(running)
    each.rounds.count("routes", len(exposure.ROUTES) + len(exposure.OPEN))


_ON_A_SERVER: tuple[Callable[[Running, Round], None], ...] = (
    _check_routes,
    lambda running, each: exposure.check_proxy(running, each.folder),
    lambda running, each: exposure.check_logs(running, each.folder),
)


@needs_nginx
@case("S1", count=len(CHECKS) + len(_ON_A_SERVER), short=0, unit="checks")
def test_hostile(rounds: Rounds, request: pytest.FixtureRequest) -> None:
    """Keys and routes, 600 hostile ids, redirects, proxies, .netrc, words for a terminal and a log, tampered files.

    As documented.
    """
    running: Running | None = None
    if max(rounds.numbers) >= len(CHECKS):
        running = request.getfixturevalue("server")

    def work(each: Round) -> None:
        if running is None or each.number < len(CHECKS):
            check = list(CHECKS.values())[each.number]
            for name, count in check(each.draw, each.folder).items():
                rounds.count(name, count)
        else:
            _ON_A_SERVER[each.number - len(CHECKS)](running, each)

    rounds.do(work)

"""What the tests, the soak and the benchmarks share: servers, fakes and test data."""

import os
import signal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def prepare_process() -> None:
    """Keep what this shell set for other work away from the servers and commands that are started here."""
    for name in [name for name in os.environ if name.startswith("CLOUDVID_")]:
        del os.environ[name]
    for sign in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(sign) is signal.SIG_IGN:  # by nohup or a background job; child processes would inherit it
            signal.signal(sign, signal.default_int_handler)
    # As the server does: threads that spin while they wait make small models many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

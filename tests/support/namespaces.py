"""Several hosts on one machine: network namespaces joined by a bridge that lies in a namespace too.

They have no names and last as long as the processes that hold them, which end with this one: nothing is left behind,
whatever ends a test, and nothing is changed that others on this machine can see.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.waiting import until

_LIBC = ctypes.CDLL(None, use_errno=True)
_TOOLS = ("ip", "nsenter", "setpriv", "unshare")


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if missing := [tool for tool in _TOOLS if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]:
        return f"{', '.join(missing)} not installed (apt-get install iproute2 util-linux)"
    attempt = ["unshare", "--net", "ip", "link", "add", "name", "bridge", "type", "bridge"]
    tried = subprocess.run(attempt, capture_output=True, text=True, check=False)
    return f"network namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


class Namespace:
    """A separate network stack."""

    def __init__(self, holder: subprocess.Popen) -> None:
        self.prefix = ("nsenter", "--target", str(holder.pid), "--net", "--")
        """Comes before a command to run it in the namespace; the process is the command's."""
        self.path = Path(f"/proc/{holder.pid}/ns/net")
        until(lambda: self.path.readlink() != Path("/proc/self/ns/net").readlink())

    def ip(self, *arguments: str) -> None:
        subprocess.run([*self.prefix, "ip", *arguments], check=True)

    def call(self, function: Callable):
        """The result of a function that runs in it: in a new thread, since each thread has its own namespace."""

        def run():
            with self.path.open() as namespace:
                if _LIBC.setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            return function()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(run).result()


@contextmanager
def joined(count: int):
    """A namespace with a bridge, at 198.18.0.1, and so many others on it, at 198.18.0.10 and on."""
    with ExitStack() as stack:

        def namespace() -> Namespace:
            command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
            holder = subprocess.Popen(command)
            stack.callback(lambda: (holder.kill(), holder.wait()))
            return Namespace(holder)

        outside = namespace()
        outside.ip("link", "set", "lo", "up")
        outside.ip("link", "add", "name", "bridge", "type", "bridge")
        outside.ip("address", "add", "198.18.0.1/24", "dev", "bridge")
        outside.ip("link", "set", "bridge", "up")
        hosts = [namespace() for _ in range(count)]
        for index, host in enumerate(hosts):
            outside.ip("link", "add", f"host{index}", "type", "veth", "peer", "name", "eth0", "netns", host.prefix[2])
            outside.ip("link", "set", f"host{index}", "master", "bridge", "up")
            host.ip("link", "set", "lo", "up")
            host.ip("address", "add", f"198.18.0.{10 + index}/24", "dev", "eth0")
            host.ip("link", "set", "eth0", "up")
        yield outside, hosts

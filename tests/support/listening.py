"""Where the processes of a server listen."""

import contextlib
import ipaddress
import json
import os

import psutil

from deploy.torchserve import PORTS
from support.waiting import until

OF_ANOTHER = {"TS_INFERENCE_ADDRESS": "http://0.0.0.0:1", "TS_GRPC_INFERENCE_ADDRESS": "0.0.0.0"}
"""Addresses that a user's shell may hold for another TorchServe."""


def listeners(processes):
    """Addresses and ports on which these listen."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN or connection.type == 2:  # UDP has no state
                    address = ipaddress.ip_address(connection.laddr.ip)
                    found.add((str(getattr(address, "ipv4_mapped", None) or address), connection.laddr.port))
    return found


def group_of(server):
    """The server's processes; none before its file is written."""
    try:
        record = json.loads(server.pid_file.read_text())
    except (OSError, ValueError):
        return []
    return [process for process in psutil.process_iter() if _group(process) == record["pid"]]


def _group(process):
    with contextlib.suppress(OSError, psutil.Error):
        return os.getpgid(process.pid)
    return None


def await_listeners(server):
    """All six ports, once they are there: not one more, and each on loopback."""
    expected = {("127.0.0.1", server.port + above) for above in range(PORTS)}
    until(lambda: listeners(group_of(server)) >= expected)
    assert listeners(group_of(server)) == expected

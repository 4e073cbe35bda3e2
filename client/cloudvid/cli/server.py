"""Commands on the server: wait."""

from typing import Annotated

import typer

from cloudvid.cli.options import takes_client
from cloudvid.client import Client


@takes_client
def wait(
    client: Client,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Seconds after which to give up.")] = 600.0,
) -> None:
    """Wait until both stages have a worker that is ready."""
    client.wait_until_ready(timeout=timeout)
    print("both stages are ready")

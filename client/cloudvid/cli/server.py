"""Commands on the server: wait."""

from typing import Annotated

import typer

from cloudvid.cli.options import takes_client
from cloudvid.client import Client
from cloudvid_schema.protocol import Stage


@takes_client
def wait(
    client: Client,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Seconds after which to give up.")] = 600.0,
) -> None:
    """Wait until both stages have a worker that is ready."""
    client.wait_until_ready(timeout=timeout)
    if all(client.readiness(stage) for stage in Stage):
        print("both stages are ready")
    else:
        print("the server answers; whether its workers are ready cannot be seen without the management API and its key")

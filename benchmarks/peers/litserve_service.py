"""A LitServe service of one stage: `python -m peers.litserve_service PORT WORKERS`."""

import sys
from typing import Any

import litserve
from fastapi import Response

from peers.stage import Served


class StageAPI(litserve.LitAPI):
    """LitServe's four steps around a stage."""

    def setup(self, device: str) -> None:
        """Load the stage, once a worker."""
        self._served = Served()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """The body is JSON already."""
        return request

    def predict(self, asked: dict[str, Any]) -> tuple[bytes, str]:
        """A request's file and its media type."""
        return self._served.make(asked)

    def encode_response(self, made: tuple[bytes, str]) -> Response:
        """The file as it is."""
        return Response(made[0], media_type=made[1])


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    server = litserve.LitServer(StageAPI(), accelerator="cpu", workers_per_device=workers, timeout=600, fast_queue=True)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")

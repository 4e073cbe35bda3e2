"""Other servers of the product's own stages, each with the JSON form of a request as its body: a minimal FastAPI
service, each of whose processes carries out one request at a time, and a LitServe service.

    python -m benchmarks.peers FastAPI|LitServe PORT WORKERS

serves the stage that the variables `STAGE` and `MODEL` name.
"""

import base64
import os
import sys
import threading
from typing import Annotated, Any

import litserve
import uvicorn
from fastapi import Body, FastAPI, Response

from cloudvid_schema.protocol import ImageToVideoRequest, Stage, TextToImageRequest
from cloudvid_serving.jobs import Job
from cloudvid_stages.image_to_video import ImageToVideo
from cloudvid_stages.text_to_image import TextToImage


class Served:
    """The stage, loaded."""

    def __init__(self) -> None:
        kind = {Stage.T2I: TextToImage, Stage.I2V: ImageToVideo}[Stage(os.environ["STAGE"])]
        self._loaded = kind.load({"model": os.environ["MODEL"]}, None)

    def make(self, asked: dict[str, Any]) -> Response:
        """The file of a request.

        Raises:
            Exception: whatever the request failed with.
        """
        picture = asked.pop("image", None)
        if self._loaded.stage is Stage.T2I:
            job = Job(TextToImageRequest.model_validate(asked))
        else:
            job = Job(ImageToVideoRequest.model_validate(asked), base64.b64decode(picture))
        (outcome,) = self._loaded.run([job])
        if isinstance(outcome, Exception):
            raise outcome
        return Response(outcome.data, media_type=outcome.media_type)


class LitServeStage(litserve.LitAPI):
    """LitServe's four steps around a stage; the body is JSON already, and the response whole."""

    def setup(self, device: str) -> None:
        self._served = Served()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def predict(self, asked: dict[str, Any]) -> Response:
        return self._served.make(asked)

    def encode_response(self, made: Response) -> Response:
        return made


def fastapi_stage() -> FastAPI:
    """The FastAPI service, for each of uvicorn's processes."""
    app, served, at_work = FastAPI(), Served(), threading.Lock()

    @app.get("/health")
    def health() -> int:
        """Which process answers; it does so once the stage is loaded."""
        return os.getpid()

    @app.post("/predict")
    def predict(asked: Annotated[dict[str, Any], Body()]) -> Response:
        """A request's file."""
        with at_work:
            return served.make(asked)

    return app


def main() -> None:
    """Serve until killed."""
    peer, port, workers = sys.argv[1], *map(int, sys.argv[2:])
    if peer == "FastAPI":
        options = {"port": port, "workers": workers, "log_level": "warning"}
        uvicorn.run("benchmarks.peers:fastapi_stage", factory=True, **options)
    else:
        api = LitServeStage()
        server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=600, fast_queue=True)
        server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()

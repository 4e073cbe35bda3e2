"""A minimal FastAPI service of one stage: `uvicorn peers.fastapi_service:app`. Each of uvicorn's processes has loaded
the stage and carries out one request at a time.
"""

import os
import threading
from typing import Annotated, Any

from fastapi import Body, FastAPI, Response

from peers.stage import Served

app = FastAPI()
served = Served()
at_work = threading.Lock()


@app.get("/health")
def health() -> int:
    """Which process answers; it does so once the stage is loaded."""
    return os.getpid()


@app.post("/predict")
def predict(asked: Annotated[dict[str, Any], Body()]) -> Response:
    """A request's file."""
    with at_work:
        data, media_type = served.make(asked)
    return Response(data, media_type=media_type)

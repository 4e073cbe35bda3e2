"""Answers at once, with files made beforehand: in a process with nothing else, for a client that is to be measured."""

from multiprocessing.connection import Connection

import numpy as np
from PIL import Image

from cloudvid_schema.protocol import MEDIA_TYPE, Stage
from cloudvid_stages.media import mp4_bytes, png_bytes
from support.fake_server import Answer, event_lines, fake_server, named_events, workers


def serve(side: int, ends: Connection) -> None:
    """Serve a picture SIDE×SIDE and a clip of eight such frames, made by the product's encoders from noise.

    Args:
        ends: takes the server's address and the bytes of both files; what comes back ends the server.
    """
    noise = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), np.uint8)
    files = {Stage.T2I: png_bytes(Image.fromarray(noise[0]), None), Stage.I2V: mp4_bytes(noise, 6, None)}
    answers = {}
    for stage, data in files.items():
        named = named_events(data)
        result = named["result"] | {"media_type": MEDIA_TYPE[stage], "timings": {"denoise": 1.0}}
        answers[f"/predictions/{stage}"] = event_lines(named["started"] | {"stage": stage}, *["progress"] * 5, result)
        answers[f"/models/{stage}"] = workers("READY", "READY")
    with fake_server(lambda seen: answers.get(seen.path, Answer(body=b"{}")), keep=False) as server:
        ends.send((server.url, [len(data) for data in files.values()]))
        ends.recv()

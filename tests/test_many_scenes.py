"""A thousand scenes: the client's memory stays flat."""

import io
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from cloudvid_stages import media
from support.fake_server import Answer, event_lines, fake_server

SCRIPT = """
    import resource, sys
    from pathlib import Path
    from cloudvid import Client, RenderOptions, Stage, parse_scenes, render
    from cloudvid.batch.events import SceneDone

    def megabytes():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    scenes = parse_scenes([{"id": f"s{index}", "scene_desc": f"scene {index}"} for index in range(1000)])
    client = Client(sys.argv[1], management=sys.argv[1], token="t")
    done, marks = 0, []
    for event in render(scenes, client, Path(sys.argv[2])):
        if isinstance(event, SceneDone):
            done += 1
            if done in (100, 1000):
                marks.append(megabytes())
    assert done == 1000
    print(marks[1] - marks[0])
"""


@pytest.mark.slow
def test_memory_grows_by_less_than_20_mib_over_900_scenes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise[0]).save(buffer, "PNG")
    picture = event_lines("started", "progress", "result", data=buffer.getvalue())
    clip = event_lines(
        "started",
        "progress",
        {**json.loads(event_lines("result", data=media.mp4_bytes(noise, 6, None)).body), "media_type": "video/mp4"},
    )
    state = Answer(body=json.dumps([{"workers": [{"status": "READY"}] * 2}]).encode())

    def answer(seen):
        if seen.method == "GET":
            return state
        return picture if seen.path.endswith("t2i") else clip

    with fake_server(answer, keep=False) as server:
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), server.url, str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1000

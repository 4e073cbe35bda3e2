"""What there is without a server: one plain script that loads both diffusers pipelines, makes each scene's picture and
clip one after the other, and writes the files.

    python benchmarks/monolith.py T2I_MODEL I2V_MODEL

reads lines `{"scenes": [...], "folder": "..."}` and answers each with the seconds that it took. It knows nothing of the
stages; only the encoders are theirs, so that the files can be compared.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "client"), str(ROOT / "handlers")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline  # noqa: E402

from cloudvid_stages.media import mp4_bytes, png_bytes  # noqa: E402


def make(scene: dict[str, Any], folder: Path, draw: Any, animate: Any) -> None:
    """One scene's files."""
    t2i, i2v = dict(scene["t2i_params"]), dict(scene["i2v_params"])
    seeds = [torch.Generator("cpu").manual_seed(parameters.pop("seed")) for parameters in (t2i, i2v)]
    picture = draw(scene["scene_desc"], generator=seeds[0], **t2i).images[0]
    (folder / f"{scene['id']}_base_image.png").write_bytes(png_bytes(picture, None))
    clip = animate(
        picture,
        width=picture.width,
        height=picture.height,
        generator=seeds[1],
        decode_chunk_size=8,
        output_type="np",
        **i2v,
    ).frames[0]
    frames = (clip * 255).round().astype(np.uint8)
    (folder / f"{scene['id']}_video.mp4").write_bytes(mp4_bytes(frames, i2v["fps"], None))


def main() -> None:
    """Load, then work until standard input ends."""
    draw = StableDiffusionPipeline.from_pretrained(sys.argv[1])
    animate = StableVideoDiffusionPipeline.from_pretrained(sys.argv[2])
    for pipeline in (draw, animate):
        pipeline.set_progress_bar_config(disable=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        for scene in asked["scenes"]:
            make(scene, Path(asked["folder"]), draw, animate)
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()

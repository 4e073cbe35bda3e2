"""Golden values: what must stay the same from one version to the next.

`REQUEST_DIGESTS` changes only with the way a request is digested. Every folder that was made before such a change is
then made again, so change it only where that is meant (or where old digests still count), and say so in CHANGELOG.md.
`test_golden.py` prints the new values where they differ.
"""

REQUESTS = {
    "picture, defaults": ("t2i", {"prompt": "a lighthouse"}),
    "picture, no recipe": ("t2i", {"prompt": "a lighthouse", "embed_recipe": False}),
    "picture, guidance off": ("t2i", {"prompt": "a lighthouse", "guidance_scale": 0.0, "seed": 0}),
    "picture, every parameter": (
        "t2i",
        {
            "prompt": '夜の市場 ☂ "été" \n',
            "negative_prompt": "blurry, text",
            "num_inference_steps": 9,
            "guidance_scale": 12.5,
            "width": 768,
            "height": 72,
            "seed": 4294967295,
            "metadata": {"shot": 7, "notes": ["é", None, {"b": 1.5, "a": True}]},
        },
    ),
    "clip, defaults": ("i2v", {}),
    "clip, no recipe": ("i2v", {"embed_recipe": False}),
    "clip, seed and motion": ("i2v", {"seed": 7, "metadata": {"motion_desc": "waves roll in"}}),
    "clip, every parameter": (
        "i2v",
        {
            "width": 1024,
            "height": 576,
            "fit": "pad",
            "num_frames": 14,
            "num_inference_steps": 30,
            "fps": 12,
            "motion_bucket_id": 0,
            "noise_aug_strength": 0.0,
            "decode_chunk_size": 2,
            "min_guidance_scale": 0.0,
            "max_guidance_scale": 6.5,
            "seed": 0,
        },
    ),
    "the scene's picture": (
        "t2i",
        {"prompt": "a tea house", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 1658097939},
    ),
    "the scene's clip": (
        "i2v",
        {"num_inference_steps": 2, "seed": 2820096636, "metadata": {"motion_desc": "steam rises"}},
    ),
}
"""Requests by what they try: stage and parameters."""

REQUEST_DIGESTS = {
    "picture, defaults": "0bf99243ed7f195027c7f402eaffd5d95daf2fdb793c127c7d430636d4f898c4",
    "picture, no recipe": "941763b252084d22696891b18b385b0e0963cfb96fafc1229f346d358b86e28f",
    "picture, guidance off": "2eb6396825626a6b496c03dbf9a83fb19dac391beda3edd78ec43b115ee9ce9e",
    "picture, every parameter": "2af18a053d36ee7abcc3acaac6ab91dd9f16c4fa42703a934bab728d5c7fd3fd",
    "clip, defaults": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    "clip, no recipe": "34c855c56b2c9231be45abe0891697ea6792b00d0795160794ddd74de7ac792d",
    "clip, seed and motion": "3a99827ce3ada5c7988ad65fd41d5b5af2336c3cd71653ff4cdb37e1084166f0",
    "clip, every parameter": "26d36dccc88b69e3ea61e536d7cdb25f7c163a99f5e8ac22a8ed09828a003889",
    "the scene's picture": "92f4178077f805f7f7f9fa230c24d0ccf017ed47cdaf313cf5d096382261539d",
    "the scene's clip": "74819749eb5c1a2ca75db5ece9311917e36333702d25eda1e121a9304fa94d35",
}
"""`request_digest` of each of them."""

DIGESTS_WITH_DEFAULTS = {
    "the scene's picture": "50ddf4332807b08156c2ce50c97be55c58ba757814861ac860335b2eacbfd3fd",
    "the scene's clip": "ddeed10ce5c28682ffc6ec55a6a58653b46f1ef84ff382820a8e65d457d64777",
}
"""What 51869a4 recorded for the scene below: digests over the defaults too, which still count."""

SEEDS = {
    ("t2i", "a1"): 326951074,
    ("i2v", "a1"): 1341557435,
    ("t2i", "s0"): 1664202487,
    ("i2v", "s0"): 639425663,
    ("t2i", "tea_house"): 1658097939,
    ("i2v", "tea_house"): 2820096636,
    ("t2i", "X.y-z_9"): 328199017,
    ("i2v", "X.y-z_9"): 294596081,
}
"""Seeds of scenes that give none, by stage and id. They never change: the same id draws the same picture for good."""

SCENE = {
    "id": "tea_house",
    "scene_desc": "a tea house",
    "motion_desc": "steam rises",
    "t2i_params": {"width": 64, "height": 64, "num_inference_steps": 2},
    "i2v_params": {"num_inference_steps": 2},
}

FILES = {"tea_house_base_image.png": b"a picture", "tea_house_video.mp4": b"a clip"}
"""Stand-ins: a client that resumes looks at a file's digest, not into it."""

MANIFEST_LINE = {
    "id": "tea_house",
    "t2i": {
        "file": "tea_house_base_image.png",
        "size": 9,
        "sha256": "92b2fa58028958317e408bd84ecfa70f5ee35b121991dbc232c49d166353708b",
        "seed": 1658097939,
        "model": "noise-t2i@1",
        "request_sha256": REQUEST_DIGESTS["the scene's picture"],
        "request": {
            "negative_prompt": "",
            "num_inference_steps": 2,
            "guidance_scale": 7.5,
            "width": 64,
            "height": 64,
            "seed": 1658097939,
            "prompt": "a tea house",
            "metadata": None,
            "embed_recipe": True,
        },
    },
    "i2v": {
        "file": "tea_house_video.mp4",
        "size": 6,
        "sha256": "e899537b4c9149cd5edb2000ea1e14f1d8eb76be0ceec7868ad01c7e389eb5b9",
        "seed": 2820096636,
        "model": "noise-i2v@1",
        "picture_sha256": "92b2fa58028958317e408bd84ecfa70f5ee35b121991dbc232c49d166353708b",
        "request_sha256": REQUEST_DIGESTS["the scene's clip"],
        "request": {
            "width": None,
            "height": None,
            "fit": "crop",
            "num_frames": None,
            "num_inference_steps": 2,
            "fps": 7,
            "motion_bucket_id": 127,
            "noise_aug_strength": 0.02,
            "decode_chunk_size": None,
            "min_guidance_scale": 1.0,
            "max_guidance_scale": 3.0,
            "seed": 2820096636,
            "metadata": {"motion_desc": "steam rises"},
            "embed_recipe": True,
        },
    },
}
"""The manifest's line of that scene and those files."""

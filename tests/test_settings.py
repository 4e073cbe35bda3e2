"""An operator's settings: each takes effect and does to the pixels what its documentation says, or is refused at load."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from cloudvid_schema.protocol import Stage
from cloudvid_stages import memory
from cloudvid_stages.settings import SettingsError, TextToImageSettings, read_settings
from support.stages import KINDS, REQUESTS, clip, decoded, picture, pixels, prompt, run


def processors(loaded):
    return {type(processor).__name__ for processor in loaded._pipeline.unet.attn_processors.values()}


def channels_last_weights(loaded):
    return [
        w
        for w in loaded._pipeline.unet.parameters()
        if w.ndim == 4 and w.stride()[1] == 1 and w.shape[1] > 1 and w.shape[2] > 1
    ]


EFFECTS = [
    ("t2i", {"channels_last": True}, channels_last_weights),
    ("i2v", {"channels_last": True}, channels_last_weights),
    ("t2i", {"fuse_qkv": True}, lambda loaded: processors(loaded) == {"FusedAttnProcessor2_0"}),
    ("i2v", {"fuse_qkv": True}, lambda loaded: processors(loaded) == {"FusedAttnProcessor2_0"}),
    ("t2i", {"attention": "sliced"}, lambda loaded: processors(loaded) == {"SlicedAttnProcessor"}),
    ("t2i", {"vae_slicing": False}, lambda loaded: not loaded._pipeline.vae.use_slicing),
    ("t2i", {"vae_tiling": True}, lambda loaded: loaded._pipeline.vae.use_tiling),
    ("t2i", {"deep_cache": 2}, lambda loaded: loaded._loaded.deep_cache.reused > 0),
    ("i2v", {"deep_cache": 2}, lambda loaded: loaded._loaded.deep_cache.reused > 0),
    ("t2i", {"dtype": "bf16"}, lambda loaded: loaded._pipeline.unet.dtype is torch.bfloat16),
    ("t2i", {"dtype": "fp16"}, lambda loaded: loaded._pipeline.unet.dtype is torch.float16),
    ("i2v", {"dtype": "fp16"}, lambda loaded: loaded._pipeline.vae.dtype is torch.float16),
    (
        "t2i",
        {"scheduler": "DPMSolverMultistepScheduler"},
        lambda loaded: type(loaded._pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler",
    ),
    (
        "t2i",
        {"scheduler_options": {"timestep_spacing": "trailing"}},
        lambda loaded: loaded._pipeline.scheduler.config.timestep_spacing == "trailing",
    ),
    ("t2i", {"warm_up": ["64x64", "128x64"]}, lambda loaded: True),
    ("i2v", {"warm_up": ["64x64x2"]}, lambda loaded: True),
]


@pytest.mark.parametrize(
    ("stage", "settings", "in_force"), EFFECTS, ids=lambda value: str(value) if not callable(value) else ""
)
def test_a_setting_takes_effect_and_changes_the_pixels_as_documented(load, plain, stage, settings, in_force):
    loaded = load(stage, **settings)
    assert in_force(loaded)
    made, output = pixels(stage, loaded)
    difference = (made - plain[stage]).abs().max().item()
    (name,) = settings
    effect = KINDS[stage][1].model_fields[name].json_schema_extra["effect"]
    if name == "vae_tiling":
        assert difference == 0, "pictures smaller than a tile are decoded whole"
    elif effect == "visible":
        assert difference > 1e-3
    else:
        assert difference <= (0.0 if effect == "exact" else 1e-3)
    recorded = output.recipe.get("settings", {})
    has_a_place_of_its_own = name == "dtype"
    assert recorded == ({name: settings[name]} if effect != "exact" and not has_a_place_of_its_own else {})
    assert loaded.describe().settings[name] == settings[name]


def test_large_pictures_decoded_in_tiles_differ(load):
    request = prompt(width=640, height=640, num_inference_steps=1)
    whole, tiled = (decoded(run(load("t2i", vae_tiling=tiling), request).data) for tiling in (False, True))
    assert whole.shape == tiled.shape
    assert (whole != tiled).any()


@pytest.mark.parametrize("stage", KINDS)
def test_deep_cache_uses_nothing_of_a_request_that_failed(load, stage):
    loaded = load(stage, deep_cache=3)
    request, image = REQUESTS[stage]
    first = run(loaded, request, image).data

    def leave(phase, step, steps):
        raise ConnectionError("the caller has left")

    with pytest.raises(ConnectionError):
        run(loaded, request.model_copy(update={"seed": 2}), image, leave)
    assert run(loaded, request, image).data == first


def test_each_size_is_warmed_up_as_it_is_written(load, monkeypatch):
    sizes, call = [], StableDiffusionPipeline.__call__

    def watched(self, **options):
        sizes.append((options["width"], options["height"]))
        return call(self, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", watched)
    load("t2i", warm_up=["128x64", "64x192"])
    assert sizes == [(128, 64), (64, 192)]


@pytest.mark.parametrize("stage", KINDS)
def test_deep_cache_uses_nothing_of_another_request(load, stage):
    loaded = load(stage, deep_cache=3)
    request, image = REQUESTS[stage]
    first = run(loaded, request, image).data
    run(loaded, request.model_copy(update={"seed": 2, "num_inference_steps": 5}), image)
    run(loaded, prompt(width=64, height=128) if stage == "t2i" else clip(num_frames=2), image)
    assert run(loaded, request, image).data == first


REFUSED = [
    ("t2i", {"fuse_qkv": True, "attention": "sliced"}, "fuse_qkv works only with attention: sdpa"),
    ("t2i", {"compile": "full", "offload": "sequential"}, "compile does not go with offload: sequential"),
    ("t2i", {"compile": "regional", "offload": "group"}, "compile does not go with offload: group"),
    ("i2v", {"compile": "full", "deep_cache": 2}, "deep_cache leaves parts of it out; compile: regional goes"),
    ("i2v", {"channels_last": True, "offload": "group"}, "channels_last does not go with offload: group"),
    ("i2v", {"channels_last": True, "offload": "sequential"}, "channels_last does not go with offload: sequential"),
    ("i2v", {"deep_cache": 2, "offload": "group"}, "deep_cache does not go with offload: group"),
    ("t2i", {"deep_cache": 1}, "deep_cache: 1 would leave nothing out; 0 is off, 2 or more is on"),
    ("t2i", {"compile_cache": "/somewhere"}, "compile_cache has no effect with compile: off"),
    ("t2i", {"compile_cache": "here", "compile": "full"}, "compile_cache must be an absolute path"),
    ("t2i", {"compile": "full", "offload": "model"}, "offload: model hooks into it; compile: regional goes"),
    ("t2i", {"lora_scale": 0.5}, "lora_scale has no effect without lora"),
    ("t2i", {"lora": "a.safetensors", "lora_scale": 0}, "lora_scale: 0 would leave the LoRA without effect"),
    ("t2i", {"lora": "weights.bin"}, "lora: must be the absolute path of a .safetensors file"),
    ("t2i", {"lora": "style.safetensors"}, "lora: must be the absolute path of a .safetensors file, or one on the Hub"),
    (
        "t2i",
        {"lora": "/no/style.safetensors"},
        "lora: /no/style.safetensors is neither a file nor in the Hub cache; `make weights`",
    ),
    (
        "t2i",
        {"offload": "model"},
        "offload: model spares the memory of a GPU, and this worker runs on the CPU; use none",
    ),
    ("i2v", {"offload": "group"}, "offload: group spares the memory of a GPU"),
    ("t2i", {"attention": "xformers"}, "attention: xformers cannot be used here"),
    ("i2v", {"attention": "sliced"}, "attention: sliced has no effect on UNetSpatioTemporalConditionModel"),
    ("i2v", {"vae_slicing": True}, "vae_slicing: is not known"),
    ("i2v", {"vae_tiling": True}, "vae_tiling: is not known"),
    ("t2i", {"scheduler": "EulerScheduler"}, "scheduler: must be one of DDIMScheduler, "),
    ("t2i", {"scheduler_options": {"karras": True}}, "scheduler_options: PNDMScheduler has no option karras; it has "),
    ("i2v", {"scheduler": "DDIMScheduler"}, "scheduler: is not known"),
    ("i2v", {"lora": "a.safetensors"}, "lora: is not known"),
    ("t2i", {"warm_up": ["65x64"]}, "warm_up: '65x64' is no size of t2i: width: must be a multiple of 8, got 65"),
    ("t2i", {"warm_up": ["64x64x2"]}, "warm_up: '64x64x2' is no size of t2i: must be WIDTHxHEIGHT"),
    ("i2v", {"warm_up": ["64"]}, "warm_up: '64' is no size of i2v: must be WIDTHxHEIGHTxFRAMES"),
    ("t2i", {"warm_up": ["wide"]}, "warm_up: 'wide' is no size of t2i"),
    (
        "t2i",
        {"warm_up": ["512x512"], "max_pixels": 4096},
        "warm_up: 512x512 fails: width: width × height must be at most 4096",
    ),
    ("t2i", {"dtype": "fp8"}, "dtype: must be 'auto', 'bf16', 'fp16' or 'fp32', got \"fp8\""),
    ("t2i", {"deepcache": 2}, "deepcache: is not known; did you mean deep_cache?"),
    ("i2v", {"decode_chunk_size": 0}, "decode_chunk_size: must be at least 1, got 0"),
    ("t2i", {"max_steps": 0}, "max_steps: must be at least 1, got 0"),
    ("t2i", {"max_megapixel_steps": float("nan")}, "max_megapixel_steps: must be finite"),
]


@pytest.mark.parametrize(("stage", "settings", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_or_does_nothing_is_refused_at_load(load, stage, settings, message):
    with pytest.raises(SettingsError) as raised:
        load(stage, **settings)
    assert message in str(raised.value)


def test_every_setting_can_be_overridden_by_environment():
    values = {
        "model": "elsewhere",
        "mirrors": "a/b, c/d",
        "revision": "v2",
        "check_weights": "false",
        "dtype": "bf16",
        "offload": "model",
        "attention": "sliced",
        "channels_last": "true",
        "fuse_qkv": "false",
        "compile": "regional",
        "compile_cache": "/cache",
        "warm_up": "64x64,128x64",
        "deep_cache": "3",
        "vae_slicing": "1",
        "vae_tiling": "0",
        "max_pixels": "1000",
        "max_steps": "9",
        "max_megapixel_steps": "0.5",
        "scheduler": "DDIMScheduler",
        "scheduler_options": '{"timestep_spacing": "trailing"}',
        "lora": "x.safetensors",
        "lora_scale": "0.5",
        "max_prompt": "99",
        "decode_chunk_size": "4",
        "max_frames": "20",
        "max_decode_chunk_size": "10",
        "max_image_bytes": "1000",
        "max_image_pixels": "5000",
    }
    for stage, (_, kind) in KINDS.items():
        names = set(kind.model_fields)
        environment = {f"CLOUDVID_{stage.upper()}_{name.upper()}": values[name] for name in names}
        settings = read_settings(Stage(stage), {"model": "x"}, environment)
        left_alone = {name for name in names if getattr(settings, name) == kind.model_fields[name].default}
        assert left_alone == ({"fuse_qkv", "vae_tiling", "vae_slicing"} & names), "their text says the default"
        assert settings.mirrors == ("a/b", "c/d")
        assert settings.warm_up == ("64x64", "128x64")
    with pytest.raises(SettingsError, match="CLOUDVID_T2I_SCHEDULER_OPTIONS must be a JSON object, got 'karras'"):
        read_settings(Stage.T2I, {"model": "x"}, {"CLOUDVID_T2I_SCHEDULER_OPTIONS": "karras"})


def test_another_model_by_environment_drops_the_firsts_settings():
    first = {
        "model": "x",
        "mirrors": ["y"],
        "revision": "v1",
        "lora": "/x.safetensors",
        "lora_scale": 0.5,
        "max_steps": 9,
    }
    settings = read_settings(Stage.T2I, first, {"CLOUDVID_T2I_MODEL": "z"})
    assert settings == TextToImageSettings(model="z", max_steps=9)


def test_the_check_of_caching_respects_the_frame_limit(load):
    assert load("i2v", deep_cache=2, max_frames=2)._loaded.deep_cache


@pytest.mark.parametrize("kind", ["model", "sequential", "group"])
@pytest.mark.parametrize("stage", KINDS)
def test_offloaded_weights_come_when_needed_and_change_no_pixel(load, plain, stage, kind):
    loaded = load(stage)
    memory.place(loaded._pipeline, kind, torch.device("cpu"))  # the CPU stands in for the GPU
    loaded._settings = loaded._settings.model_copy(update={"offload": kind})
    if kind == "sequential":
        assert {weight.device.type for weight in loaded._pipeline.unet.parameters()} == {"meta"}
        for module in (
            module
            for part in loaded._pipeline.components.values()
            if isinstance(part, torch.nn.Module)
            for module in part.modules()
        ):
            if hasattr(module, "_hf_hook"):
                module._hf_hook.execution_device = torch.device("cpu")  # to "cpu:0" torch would make a copy
    if kind == "group":  # of SVD's decoder too, whose class names no blocks
        assert any(hasattr(module, "_diffusers_hook") for module in loaded._pipeline.vae.decoder.modules())
    for _ in range(2):
        made, _ = pixels(stage, loaded)
        assert torch.equal(made, plain[stage])
    if kind == "sequential":
        assert {weight.device.type for weight in loaded._pipeline.unet.parameters()} == {"meta"}


def test_an_offload_that_misses_a_part_is_refused(load):
    pipeline = load("t2i")._pipeline
    pipeline.enable_group_offload = lambda **options: None
    with pytest.raises(SettingsError, match=r"offload: group has no effect on vae \(AutoencoderKL\)"):
        memory.place(pipeline, "group", torch.device("cpu"))


def test_little_free_memory_means_fewer_frames_per_decoding(load, monkeypatch):
    loaded = load("i2v", decode_chunk_size=4)
    frame = 4 * loaded._pipeline.vae.config.block_out_channels[1] * 64 * 64 * 4
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(2.5 * frame / 0.8))
    assert run(loaded, clip(), picture()).recipe["parameters"]["decode_chunk_size"] == 2
    assert run(loaded, clip(decode_chunk_size=5), picture()).recipe["parameters"]["decode_chunk_size"] == 5
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert run(loaded, clip(), picture()).recipe["parameters"]["decode_chunk_size"] == 1


def test_memory_for_the_whole_clip_is_memory_enough(load, monkeypatch):
    loaded = load("i2v", decode_chunk_size=8)
    frame = 4 * loaded._pipeline.vae.config.block_out_channels[1] * 64 * 64 * 4
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(5.5 * frame / 0.8))
    assert run(loaded, clip(num_frames=5), picture()).recipe["parameters"]["decode_chunk_size"] == 8
    assert run(loaded, clip(num_frames=6), picture()).recipe["parameters"]["decode_chunk_size"] == 5


def test_the_description_has_settings_and_limits_but_no_path(load, tiny_models):
    described = load("i2v", max_frames=30, channels_last=True).describe()
    assert described.limits == {
        "max_frames": 30,
        "max_megapixel_steps": 20_000,
        "max_image_bytes": 2**25,
        "max_image_pixels": 2**24,
    }
    assert described.settings["channels_last"] is True
    assert described.settings["decode_chunk_size"] == 8
    assert (described.device, described.precision) == ("cpu", "fp32")
    assert described.peak_memory > 100 * 2**20
    assert str(tiny_models["i2v"]) not in described.model_dump_json()

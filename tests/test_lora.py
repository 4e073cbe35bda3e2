"""LoRA weights: fused into the model, named in its identity, or refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict

from cloudvid_stages.settings import SettingsError
from support.stages import pixels


def lora_file(folder, model, scale=1.0):
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    torch.manual_seed(3)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    weights = get_peft_model_state_dict(pipeline.unet)
    weights = {name: (weight * scale).contiguous() for name, weight in weights.items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=weights)
    return folder / "pytorch_lora_weights.safetensors"


def test_lora_weights_are_fused_named_and_scaled(load, plain, tmp_path, tiny_models):
    file = lora_file(tmp_path, tiny_models["t2i"])
    differences, identities = [], set()
    for scale in (0.25, 1.0):
        loaded = load("t2i", lora=str(file), lora_scale=scale)
        assert not any("lora" in name for name, _ in loaded._pipeline.unet.named_modules()), "fused, not beside"
        made, output = pixels("t2i", loaded)
        differences.append((made - plain["t2i"]).abs().mean().item())
        identities.add(output.recipe["model"])
    assert 0 < differences[0] < differences[1]
    assert len(identities) == 2
    assert all("+pytorch_lora_weights@" in identity for identity in identities)
    assert str(tmp_path) not in json.dumps(load("t2i", lora=str(file)).describe().model_dump(mode="json"))


@pytest.mark.parametrize("fault", ["zero", "other model", "no lora", "broken"])
def test_a_lora_without_effect_or_of_wrong_shape_is_refused(load, tmp_path, tiny_models, fault):
    file = lora_file(tmp_path, tiny_models["t2i"], scale=0.0 if fault == "zero" else 1.0)
    if fault == "other model":
        from safetensors.torch import load_file, save_file

        save_file({name: torch.cat([weight, weight]).contiguous() for name, weight in load_file(file).items()}, file)
    elif fault == "no lora":
        file = next((Path(tiny_models["t2i"]) / "vae").glob("*.safetensors"))
    elif fault == "broken":
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SettingsError, match=r"lora: .*\.safetensors (changes no weight of|does not fit) this model"):
        load("t2i", lora=str(file))

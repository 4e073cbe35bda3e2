"""The text-to-image model: a CLIP text encoder and a UNet, trained together on latents of stills."""

import json
from collections.abc import Callable
from random import Random
from string import ascii_lowercase

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.captions import unconditional, vocabulary
from demo.tiny import byte_characters
from demo.training.loop import Batches, channels_last

WORDINGS = 8
"""Descriptions of each still."""
_WIDTH = 96
_UNCONDITIONAL_SHARE = 0.1
_TRAINED_STEPS = 1000


class TextToImageNetwork(nn.Module):
    """What learns from descriptions: the text encoder and the UNet."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=_WIDTH,
                intermediate_size=2 * _WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(48, 80, 96),
            layers_per_block=1,
            norm_num_groups=16,
            cross_attention_dim=_WIDTH,
            attention_head_dim=4,  # the number of heads, by a misnomer that diffusers keeps
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )
        channels_last(self.unet)
        self.register_buffer("_kept", scheduler().alphas_cumprod.clone(), persistent=False)

    def loss(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """How far the predicted velocity is off, at steps of noise that are spread evenly over the batch.

        Args:
            latents: N×4×H×W of pictures.
            tokens: N×L of their descriptions.
        """
        count, device = len(latents), latents.device
        spread = torch.arange(count, device=device) * _TRAINED_STEPS // count
        steps = (torch.randint(_TRAINED_STEPS, (1,), device=device) + spread) % _TRAINED_STEPS
        kept = self._kept[steps].view(-1, 1, 1, 1)  # type: ignore[index]
        noise = torch.randn_like(latents)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        states = self.text_encoder(tokens).last_hidden_state
        return mse_loss(self.unet(noisy, steps, states).sample.float(), velocity)


def scheduler() -> DDIMScheduler:
    """DDIM that starts from pure noise (Lin et al. 2023): otherwise no night gets dark, and no snow bright."""
    return DDIMScheduler(
        num_train_timesteps=_TRAINED_STEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, in which each word of the vocabulary is one token and any other text is spelled."""
    characters = byte_characters()
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    # Between equally frequent pairs the lower number decides. The trainer numbers letters at the end of a word in an
    # order that changes from run to run, unless they are special.
    ends = sorted({f"{word[-1]}</w>" for word in vocabulary()})
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix="</w>", special_tokens=ends, show_progress=False
    )
    trained.train_from_iterator(vocabulary(), trainer)
    merges = [(first, second) for first, second in json.loads(trained.to_str())["model"]["merges"]]
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    tokens += dict.fromkeys("".join(pair) for pair in merges if "".join(pair) not in tokens)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=77)


def tokenized(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """N×L token ids, padded to the longest prompt that the model takes."""
    length = tokenizer.model_max_length
    return torch.tensor(tokenizer(texts, padding="max_length", truncation=True, max_length=length).input_ids)


def with_strange_words(text: str, random: Random) -> str:
    """A description to which, in some cases, meaningless words are added: they must change nothing."""
    if random.random() > 0.12:
        return text
    parts = text.split(" ")
    for _ in range(random.randint(1, 3)):
        strange = "".join(random.choices(ascii_lowercase, k=random.randint(2, 9)))
        parts.insert(random.randrange(len(parts) + 1), strange)
    return " ".join(parts)


def batches(
    network: TextToImageNetwork,
    tokenizer: CLIPTokenizer,
    pools: dict[tuple[int, int], tuple[Tensor, Tensor]],
    shares: dict[tuple[int, int], float],
    area: int,
) -> list[Batches]:
    """What the network is trained on.

    Args:
        network: the network.
        tokenizer: its tokenizer.
        pools: of each size in pixels, latents (N×4×H×W) and tokens of their descriptions (N×K×L), on its device.
        shares: of the steps, by size.
        area: latent positions of a batch.
    """
    random = Random(0)
    nothing = tokenized(tokenizer, [unconditional(random) for _ in range(512)])

    def loss_of(latents: Tensor, tokens: Tensor) -> Callable[[], Tensor]:
        device, count = latents.device, max(2, area // latents[0, 0].numel())
        open_prompts = nothing.to(device)

        def loss() -> Tensor:
            which = torch.randint(len(latents), (count,), device=device)
            wording = torch.randint(tokens.shape[1], (count,), device=device)
            described = tokens[which, wording].long()
            undescribed = open_prompts[torch.randint(len(open_prompts), (count,), device=device)]
            is_open = torch.rand(count, 1, device=device) < _UNCONDITIONAL_SHARE
            return network.loss(latents[which].float(), torch.where(is_open, undescribed, described))

        return loss

    return [Batches(f"{w}x{h}", shares[w, h], loss_of(*pool)) for (w, h), pool in pools.items()]

"""Video LLMs with random weights, at real or at tiny sizes: to try things and to time them.

What they answer means nothing. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from stc_stream.session.pixels import CroppedPixelSettings, PixelSettings
from stc_stream.session.processor import SessionProcessor
from stc_stream.towers.sizes import MODEL_SIZES

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""LLaVA-OneVision's, for conversations of videos and text."""
VICUNA_TEMPLATE = (
    "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-NeXT-Video's, for conversations of videos and text."""


@dataclass(frozen=True)
class LlavaSizes:
    """Sizes of a LLaVA-OneVision or a LLaVA-NeXT-Video.

    Attributes:
        image, patch: sides of a frame and of a patch, in pixels.
        tower: width, MLP width, layers and heads of the tower.
        llm: width, MLP width, layers, heads and key-value heads of the LLM.
        vocabulary: rows of the LLM's table.
        context: its positions.
        llm_settings: more of its config.
    """

    image: int = 32
    patch: int = 4
    tower: tuple[int, int, int, int] = (32, 64, 2, 2)
    llm: tuple[int, int, int, int, int] = (64, 128, 2, 4, 2)
    vocabulary: int = 300
    context: int = 4096
    llm_settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def qwen2_0_5b(cls, **changes: Any) -> LlavaSizes:
        """Return SigLIP-base's sizes, 784 patches and 196 tokens a frame, and Qwen2-0.5B's."""
        base = MODEL_SIZES["siglip-base"]
        sizes: dict[str, Any] = {
            "image": 448,
            "patch": base.patch,
            "tower": (base.width, base.mlp, base.layers, base.heads),
            "llm": (896, 4864, 24, 14, 2),
            "vocabulary": 151936,
            "context": 32768,
            "llm_settings": {"tie_word_embeddings": True, "rope_theta": 1000000.0},
        }
        return cls(**{**sizes, **changes})


def build_llava_onevision(
    sizes: LlavaSizes | None = None, seed: int = 0
) -> tuple[LlavaOnevisionForConditionalGeneration, SessionProcessor]:
    """Return a LLaVA-OneVision with random weights that follow from a seed, and its processor.

    Args:
        sizes: None: tiny ones, 16 tokens a frame.
    """
    sizes = sizes or LlavaSizes()
    tower = SiglipVisionConfig(**_tower(sizes), vision_use_head=False)
    tokenizer = build_tokenizer()
    numbers = tokenizer.get_vocab()
    llm = Qwen2Config(**_llm(sizes, tokenizer))
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config=llm,
        image_token_index=numbers["<image>"],
        video_token_index=numbers["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[sizes.image, sizes.image]],
        tie_word_embeddings=bool(sizes.llm_settings.get("tie_word_embeddings", False)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config)
    model.train(False)
    pixels = PixelSettings(sizes.image, sizes.image)
    return model, SessionProcessor(tokenizer, TEMPLATE, pixels)


def build_llava_next_video(
    sizes: LlavaSizes | None = None, seed: int = 0, llm: type[Any] = LlamaConfig, **settings: Any
) -> tuple[LlavaNextVideoForConditionalGeneration, SessionProcessor]:
    """Return a LLaVA-NeXT-Video with random weights that follow from a seed, and its processor.

    Args:
        sizes: None: tiny ones, 16 tokens a frame.
        llm: class of the LLM's config: Llama's or Mistral's.
        settings: more of the model's config: `spatial_pool_mode`, `spatial_pool_stride`.
    """
    # The tower's last layer is not taken.
    sizes = sizes or LlavaSizes(tower=(32, 64, 3, 2))
    tokenizer = build_tokenizer()
    numbers = tokenizer.get_vocab()
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**_tower(sizes)),
        text_config=llm(**_llm(sizes, tokenizer)),
        image_token_index=numbers["<image>"],
        video_token_index=numbers["<video>"],
        image_grid_pinpoints=[[sizes.image, sizes.image]],
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaNextVideoForConditionalGeneration(config)
    model.train(False)
    pixels = CroppedPixelSettings(sizes.image, sizes.image, shorter=sizes.image)
    return model, SessionProcessor(tokenizer, VICUNA_TEMPLATE, pixels)


def _tower(sizes: LlavaSizes) -> dict[str, Any]:
    """Return the settings of a tower."""
    width, hidden, layers, heads = sizes.tower
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": sizes.image,
        "patch_size": sizes.patch,
    }


def _llm(sizes: LlavaSizes, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the settings of an LLM."""
    width, hidden, layers, heads, kv_heads = sizes.llm
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.context,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        **sizes.llm_settings,
    }


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, with Qwen's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=_SPECIAL[0],
        eos_token=_SPECIAL[2],
        additional_special_tokens=[_SPECIAL[1], *_SPECIAL[3:]],
        padding_side="left",
    )

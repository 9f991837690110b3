"""Video LLMs with random weights, at real or at tiny sizes: to try things and to time them.

What they answer means nothing. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
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
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)

from stc_stream.session.pixels import (
    CroppedPixelSettings,
    DynamicPixelSettings,
    PixelSettings,
    SharedPixelSettings,
)
from stc_stream.session.processor import SessionProcessor
from stc_stream.towers.sizes import MODEL_SIZES

_LLAVA = ("<image>", "<video>")
_QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
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
QWEN_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Qwen2-VL's, for conversations of videos and text, without its system prompt."""


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
    llm = Qwen2Config(**{**_llm(sizes, tokenizer), **sizes.llm_settings})
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
    model = _seeded(LlavaOnevisionForConditionalGeneration, config, seed)
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
        text_config=llm(**{**_llm(sizes, tokenizer), **sizes.llm_settings}),
        image_token_index=numbers["<image>"],
        video_token_index=numbers["<video>"],
        image_grid_pinpoints=[[sizes.image, sizes.image]],
        **settings,
    )
    model = _seeded(LlavaNextVideoForConditionalGeneration, config, seed)
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


def _llm(sizes: LlavaSizes | QwenSizes, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
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
    }


def _seeded(kind: type[Any], config: Any, seed: int) -> Any:
    """Return a model with random weights that follow from a seed; other draws stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.train(False)
    return model


@dataclass(frozen=True)
class QwenSizes:
    """Sizes of a Qwen2-VL or one of its successors.

    Attributes:
        patch: side of a patch, in pixels; two by two are a token, two frames deep.
        pixels: fewest and most of a frame after resizing.
        tower: width, MLP width, layers and heads of the tower.
        llm: width, MLP width, layers, heads and key-value heads of the LLM.
        vocabulary: rows of the LLM's table.
        context: its positions.
    """

    patch: int = 4
    pixels: tuple[int, int] = (256, 1024)
    tower: tuple[int, int, int, int] = (32, 64, 2, 2)
    llm: tuple[int, int, int, int, int] = (64, 128, 2, 4, 2)
    vocabulary: int = 300
    context: int = 4096


def build_qwen2_vl(
    sizes: QwenSizes | None = None, seed: int = 0
) -> tuple[Qwen2VLForConditionalGeneration, SessionProcessor]:
    """Return a Qwen2-VL with random weights that follow from a seed, and its processor.

    Args:
        sizes: None: tiny ones, at most 16 tokens a temporal patch.
    """
    sizes = sizes or QwenSizes()
    width, hidden, layers, heads = sizes.tower
    tower = {
        "embed_dim": width,
        "hidden_size": sizes.llm[0],
        "mlp_ratio": hidden // width,
        "depth": layers,
        "num_heads": heads,
        "patch_size": sizes.patch,
    }
    return _build_qwen(Qwen2VLConfig, Qwen2VLForConditionalGeneration, tower, sizes, seed)


def build_qwen2_5_vl(
    sizes: QwenSizes | None = None, seed: int = 0
) -> tuple[Qwen2_5_VLForConditionalGeneration, SessionProcessor]:
    """Return a Qwen2.5-VL with random weights that follow from a seed, and its processor.

    Its tower attends in windows of two by two tokens, but for the last layer.

    Args:
        sizes: None: tiny ones, at most 16 tokens a temporal patch.
    """
    sizes = sizes or QwenSizes()
    width, hidden, layers, heads = sizes.tower
    tower = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "out_hidden_size": sizes.llm[0],
        "depth": layers,
        "num_heads": heads,
        "patch_size": sizes.patch,
        "window_size": 4 * sizes.patch,
        "fullatt_block_indexes": [layers - 1],
        "tokens_per_second": 2,
    }
    return _build_qwen(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, tower, sizes, seed)


def build_qwen3_vl(
    sizes: QwenSizes | None = None, seed: int = 0
) -> tuple[Qwen3VLForConditionalGeneration, SessionProcessor]:
    """Return a Qwen3-VL with random weights that follow from a seed, and its processor.

    All layers of its tower but the last are added behind layers of the LLM, of which there must be
    as many.

    Args:
        sizes: None: tiny ones, at most 16 tokens a temporal patch; pixels are of two frames.
    """
    sizes = sizes or QwenSizes(pixels=(512, 2048))
    width, hidden, layers, heads = sizes.tower
    tower = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "out_hidden_size": sizes.llm[0],
        "depth": layers,
        "num_heads": heads,
        "patch_size": sizes.patch,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [*range(layers - 1)],
    }
    more = {"head_dim": sizes.llm[0] // sizes.llm[3]}
    model, processor = _build_qwen(
        Qwen3VLConfig, Qwen3VLForConditionalGeneration, tower, sizes, seed, more
    )
    pixels = SharedPixelSettings(
        *sizes.pixels, patch=sizes.patch, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    return model, replace(processor, pixels=pixels)


def _build_qwen(
    config: type,
    model: type,
    tower: dict[str, Any],
    sizes: QwenSizes,
    seed: int,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Any, SessionProcessor]:
    tokenizer = build_tokenizer(_QWEN)
    numbers = tokenizer.get_vocab()
    width, _, _, heads, _ = sizes.llm
    # A quarter of a head's pairs of channels turns with time, the others with row and column.
    pairs = width // heads // 2
    row = (pairs - pairs // 4) // 2
    llm = {
        **_llm(sizes, tokenizer),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": [pairs - 2 * row, row, row],
        },
        **more,
    }
    settings = config(
        vision_config=tower,
        text_config=llm,
        image_token_id=numbers["<|image_pad|>"],
        video_token_id=numbers["<|video_pad|>"],
        vision_start_token_id=numbers["<|vision_start|>"],
        vision_end_token_id=numbers["<|vision_end|>"],
    )
    built = _seeded(model, settings, seed)
    pixels = DynamicPixelSettings(*sizes.pixels, patch=sizes.patch)
    return built, SessionProcessor(tokenizer, QWEN_TEMPLATE, pixels, "<|video_pad|>")


def build_tokenizer(more: tuple[str, ...] = _LLAVA) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, with Qwen's special tokens.

    Args:
        more: further special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *more],
        padding_side="left",
    )

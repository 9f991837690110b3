"""The small video LLM: transformers' own LLaVA-OneVision, with a tokenizer of whole sentences."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from stc_stream.evaluate.scenes import ANSWERS, FRAME_SIZE, PATCH_SIZE, question_texts

WIDTH = 128
"""Of the tower and of the LLM."""
GRID = FRAME_SIZE // PATCH_SIZE
"""Rows and columns of patches in a frame."""
TOKENS = (GRID // 2) ** 2
"""Tokens a frame that the LLM sees, after pooling."""
PAD, END, VIDEO, IMAGE, UNKNOWN = "<pad>", "<end>", "<video>", "<image>", "<unknown>"


def vocabulary() -> list[str]:
    """Return every token in order of its number: a question is one, an answer is one."""
    answers = dict.fromkeys(answer for choices in ANSWERS.values() for answer in choices)
    return [PAD, END, VIDEO, IMAGE, UNKNOWN, *answers, *question_texts()]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole questions and answers, to which all else is unknown."""
    tokens = vocabulary()
    tokenizer = Tokenizer(
        models.WordLevel({token: number for number, token in enumerate(tokens)}, UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Added, so that spaces don't cut them; the longest that fits is read.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens[5:]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[VIDEO, IMAGE],
        padding_side="left",
    )


def build_model(seed: int) -> LlavaOnevisionForConditionalGeneration:
    """Return the model with random weights that follow from a seed."""
    tokens = vocabulary()
    vision = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=FRAME_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    text = Qwen2Config(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokens),
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        pad_token_id=tokens.index(PAD),
        bos_token_id=None,
        eos_token_id=tokens.index(END),
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokens.index(IMAGE),
        video_token_index=tokens.index(VIDEO),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[FRAME_SIZE, FRAME_SIZE]],
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    return LlavaOnevisionForConditionalGeneration(config).eval()


def tower_weights(model: LlavaOnevisionForConditionalGeneration) -> list[nn.Parameter]:
    """Return what the first stage trains: the tower and the projector."""
    core = model.model
    return [*core.vision_tower.parameters(), *core.multi_modal_projector.parameters()]


def llm_weights(model: LlavaOnevisionForConditionalGeneration) -> list[nn.Parameter]:
    """Return what the second stage trains: the LLM, its output and the newline after a video."""
    core = model.model
    return [*core.language_model.parameters(), *model.lm_head.parameters(), core.image_newline]

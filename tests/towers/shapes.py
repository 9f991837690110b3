"""Vision towers in the shape of classes that are not in transformers, with weights of their own.

timm's VisionTransformer, LLaVA's own SigLIP (StreamForest) and LLaVA's wrapper of CLIP (Dispider):
what their modules are called, what their encoders pass to the layers and expect back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class PatchDropout(nn.Module):
    def __init__(self, prob: float) -> None:
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor) -> Tensor:
        return x[:, torch.randperm(x.shape[1])[:5]] if self.training else x


class TimmAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads)
        self.attn_drop = nn.Dropout(0.0)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = self.q_norm(qkv[0]), self.k_norm(qkv[1]), qkv[2]
        x = functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self.proj_drop(self.proj(self.norm(x.transpose(1, 2).flatten(2))))


class TimmMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 48), nn.GELU(), nn.Linear(48, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TimmBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), TimmAttention(dim, heads)
        self.ls1, self.drop_path1 = LayerScale(dim), nn.Identity()
        self.norm2, self.mlp = nn.LayerNorm(dim), TimmMlp(dim)
        self.ls2, self.drop_path2 = LayerScale(dim), nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TimmPatches(nn.Module):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimmTower(nn.Module):
    """timm's VisionTransformer with everything its plain block may have."""

    def __init__(self, dim: int, depth: int, heads: int, image: int, patch: int) -> None:
        super().__init__()
        self.num_prefix_tokens = 3
        self.patch_embed = TimmPatches(dim, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.reg_token = nn.Parameter(torch.randn(1, 2, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 3, dim))
        self.patch_drop: nn.Module = nn.Identity()
        self.blocks = nn.Sequential(*(TimmBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x)[:, 0])

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = self._embed(x)
        if attn_mask is not None:
            for block in self.blocks:
                x = block(x, attn_mask=attn_mask)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def forward_intermediates(
        self, x: Tensor, indices: list[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        x, found = self._embed(x), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if indices is None or number in indices:
                found.append(x[:, self.num_prefix_tokens :])
        return self.norm(x), found

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token)]
        return self.patch_drop(torch.cat([*prefix, x], dim=1) + self.pos_embed)


class EncoderOutput(NamedTuple):
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None


class LlavaSiglipAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.scale, self.dropout = self.head_dim**-0.5, 0.0
        self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.q_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        query, key, value = (
            project(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = (query @ key.transpose(2, 3) * self.scale).softmax(-1)
        return self.out_proj((weights @ value).transpose(1, 2).flatten(2)), weights


class LlavaSiglipMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 48), nn.Linear(48, dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(hidden_states), approximate="tanh"))


class LlavaSiglipLayer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = LlavaSiglipAttention(dim, heads)
        self.layer_norm1, self.mlp = nn.LayerNorm(dim, eps=1e-6), LlavaSiglipMlp(dim)
        self.layer_norm2 = nn.LayerNorm(dim, eps=1e-6)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool | None = False,
    ) -> tuple[Tensor, ...]:
        attended, weights = self.self_attn(self.layer_norm1(hidden_states), attention_mask)
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return (hidden_states, weights) if output_attentions else (hidden_states,)


class LlavaSiglipEncoder(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LlavaSiglipLayer(dim, heads) for _ in range(depth))

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> EncoderOutput:
        hidden_states, states = inputs_embeds, ()
        for layer in self.layers:
            states += (hidden_states,)
            outputs = layer(hidden_states, attention_mask, output_attentions=output_attentions)
            hidden_states = outputs[0]
        states += (hidden_states,)
        return EncoderOutput(hidden_states, states if output_hidden_states else None)


class LlavaSiglipEmbeddings(nn.Module):
    def __init__(self, dim: int, image: int, patch: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, dim, patch, patch)
        self.position_embedding = nn.Embedding((image // patch) ** 2, dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        return patches + self.position_embedding.weight


class LlavaSiglipTransformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, image: int, patch: int) -> None:
        super().__init__()
        self.embeddings = LlavaSiglipEmbeddings(dim, image, patch)
        self.encoder = LlavaSiglipEncoder(dim, depth, heads)
        self.post_layernorm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, dim)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None
    ) -> EncoderOutput:
        hidden_states = self.embeddings(pixel_values)
        return self.encoder(hidden_states, output_hidden_states=output_hidden_states)


class LlavaSiglipModel(nn.Module):
    def __init__(self, **shape: int) -> None:
        super().__init__()
        self.vision_model = LlavaSiglipTransformer(**shape)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False) -> EncoderOutput:
        return self.vision_model(pixel_values, output_hidden_states=output_hidden_states)


class LlavaSiglipTower(nn.Module):
    """What LLaVA puts around its own SigLIP: the last layer and the head are taken away."""

    def __init__(self, **shape: int) -> None:
        super().__init__()
        self.vision_tower = LlavaSiglipModel(**shape)
        del self.vision_tower.vision_model.encoder.layers[-1:]
        self.vision_tower.vision_model.head = nn.Identity()

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        if isinstance(images, list):
            return [self._features(image.unsqueeze(0)) for image in images]
        return self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        return self.vision_tower(images, output_hidden_states=True).hidden_states[-1]


class LlavaClipTower(nn.Module):
    """What LLaVA puts around transformers' CLIP: the last layer but one, without class token."""

    def __init__(self, vision_tower: CLIPVisionModel) -> None:
        super().__init__()
        self.vision_tower, self.select_layer = vision_tower, -2

    @torch.no_grad()
    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        if isinstance(images, list):
            return [self._features(image.unsqueeze(0)) for image in images]
        return self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        output = self.vision_tower(images, output_hidden_states=True)
        return output.hidden_states[self.select_layer][:, 1:]

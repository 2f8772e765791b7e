"""CLIP's vision transformer (Radford et al. 2021, arXiv:2103.00020), up to the layer that LLaVA reads."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddle_llava.config import VisionConfig
from paddle_llava.models.attention import attention, swap_heads


def quick_gelu(x: Tensor) -> Tensor:
    return x * F.sigmoid(1.702 * x)


class CLIPAttention(nn.Layer):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch, length, hidden_size = hidden_states.shape
        query, key, value = (
            swap_heads(projection(hidden_states).reshape([batch, length, self.num_heads, -1]))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        output = swap_heads(attention(query, key, value))
        return self.out_proj(output.reshape([batch, length, hidden_size]))


class CLIPMLP(nn.Layer):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = quick_gelu if config.hidden_act == "quick_gelu" else F.gelu
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class CLIPLayer(nn.Layer):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = CLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states + self.self_attn(self.layer_norm1(hidden_states))
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class CLIPVisionTower(nn.Layer):
    """Patches to hidden states.

    `post_layernorm` and the layers after `feature_layer` are not used by LLaVA; they are held because its files
    carry them and other programs want them back.
    """

    def __init__(self, config: VisionConfig, feature_layer: int = -2) -> None:
        super().__init__()
        num_layers = config.num_hidden_layers
        self.used_layers = feature_layer if feature_layer >= 0 else num_layers + 1 + feature_layer
        self.class_embedding = self.create_parameter([config.hidden_size])
        self.patch_embedding = nn.Conv2D(
            config.num_channels,
            config.hidden_size,
            config.patch_size,
            stride=config.patch_size,
            bias_attr=False,
        )
        self.position_embedding = nn.Embedding(config.num_patches + 1, config.hidden_size)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.LayerList([CLIPLayer(config) for _ in range(num_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[tiles, 3, image_size, image_size] to `hidden_states[feature_layer]`, [tiles, 1 + patches, hidden_size].

        The first row of each tile is the class token's. `hidden_states[0]` is the output of `pre_layernorm`.
        """
        patches = self.patch_embedding(pixel_values.astype(self.class_embedding.dtype))
        patches = patches.flatten(2).transpose([0, 2, 1])
        class_token = self.class_embedding.expand([patches.shape[0], 1, -1])
        hidden_states = paddle.concat([class_token, patches], axis=1) + self.position_embedding.weight
        hidden_states = self.pre_layernorm(hidden_states)
        for layer in self.layers[: self.used_layers]:
            hidden_states = layer(hidden_states)
        return hidden_states

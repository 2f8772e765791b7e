"""Random weights of any shape as the two files that llama.cpp reads: the decoder's, and the tower's with the projector.

Blocks are drawn in their stored form, tensor by tensor. Types are those of the files that are handed around: the output
head of Q4_0 in Q6_K, the tower in float16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import llama_cpp_source
from paddle_llava.config import LlavaConfig
from random_checkpoint import SHAPES

llama_cpp_source.prepare_import()
from gguf import GGMLQuantizationType, GGUFWriter  # noqa: E402

DECODER, TOWER = "decoder.gguf", "tower.gguf"
Kind = GGMLQuantizationType
# Weights and bytes of a block; its float16 scale stands at the beginning, or for Q6_K behind 16 scales of 8 bits.
BLOCKS = {Kind.Q8_0: (32, 34), Kind.Q4_0: (32, 18), Kind.Q6_K: (256, 210)}
SCALES = {Kind.Q8_0: 0.02 / 74, Kind.Q4_0: 0.02 / 4.6, Kind.Q6_K: 0.02 / (18.5 * 74)}
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Tensor = tuple[str, tuple[int, ...], GGMLQuantizationType]


class GGUFBuilder:
    """A process of its own, so that making files counts in nobody's memory."""

    def build(self, folder: Path, shape: str, kind: str) -> int:
        """Write both files in `folder`, the decoder in `kind` (Q8_0 or Q4_0). Returns the bytes of it that decoding a
        token reads: all but the token embedding."""
        vision, text = SHAPES[shape]
        config = LlavaConfig(vision, text)
        folder.mkdir(parents=True)
        tensors = _decoder_tensors(config, Kind[kind])
        _write(folder / DECODER, "llama", lambda writer: _describe_decoder(writer, config), tensors)
        _write(folder / TOWER, "clip", lambda writer: _describe_tower(writer, config), _tower_tensors(config))
        return sum(_bytes(shape, kind) for name, shape, kind in tensors if name != "token_embd.weight")


def _decoder_tensors(config: LlavaConfig, kind: GGMLQuantizationType) -> list[Tensor]:
    text = config.text
    width, inner = text.hidden_size, text.intermediate_size
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    head = Kind.Q6_K if kind is Kind.Q4_0 else kind
    tensors: list[Tensor] = [
        ("token_embd.weight", (text.vocab_size, width), kind),
        ("output_norm.weight", (width,), Kind.F32),
        ("output.weight", (text.vocab_size, width), head),
    ]
    matrices = {
        "attn_q": (queries, width),
        "attn_k": (keys, width),
        "attn_v": (keys, width),
        "attn_output": (width, queries),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    for layer in range(text.num_hidden_layers):
        tensors += [(f"blk.{layer}.{name}.weight", (width,), Kind.F32) for name in ("attn_norm", "ffn_norm")]
        tensors += [(f"blk.{layer}.{name}.weight", shape, kind) for name, shape in matrices.items()]
    return tensors


def _tower_tensors(config: LlavaConfig) -> list[Tensor]:
    vision = config.vision
    width, inner, output = vision.hidden_size, vision.intermediate_size, config.text.hidden_size
    patch = (width, vision.num_channels, vision.patch_size, vision.patch_size)
    tensors: list[Tensor] = [
        ("v.class_embd", (width,), Kind.F32),
        ("v.patch_embd.weight", patch, Kind.F16),
        ("v.position_embd.weight", (vision.num_patches + 1, width), Kind.F16),
    ]
    linears = {
        "attn_q": (width, width),
        "attn_k": (width, width),
        "attn_v": (width, width),
        "attn_out": (width, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    norms = [
        "v.pre_ln",
        *(f"v.blk.{layer}.{name}" for layer in range(vision.num_hidden_layers) for name in ("ln1", "ln2")),
    ]
    named = {
        f"v.blk.{layer}.{name}": shape for layer in range(vision.num_hidden_layers) for name, shape in linears.items()
    }
    named |= {"mm.0": (output, width), "mm.2": (output, output)}
    for name in norms:
        tensors += [(f"{name}.weight", (width,), Kind.F32), (f"{name}.bias", (width,), Kind.F32)]
    for name, shape in named.items():
        tensors += [(f"{name}.weight", shape, Kind.F16), (f"{name}.bias", shape[:1], Kind.F32)]
    return tensors


def _describe_decoder(writer: GGUFWriter, config: LlavaConfig) -> None:
    text = config.text
    writer.add_context_length(4096)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_rope_dimension_count(text.head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    special = ["<unk>", "<s>", "</s>"]
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"w{number}" for number in range(text.vocab_size - len(special) - len(in_bytes))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *in_bytes, *words])
    writer.add_token_scores([0.0] * text.vocab_size)
    writer.add_token_types([2, 3, 3, *[6] * len(in_bytes), *[1] * len(words)])


def _describe_tower(writer: GGUFWriter, config: LlavaConfig) -> None:
    vision = config.vision
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", False)  # quick GELU
    for name, value in {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embedding_length": vision.hidden_size,
        "feed_forward_length": vision.intermediate_size,
        "projection_dim": vision.hidden_size,
        "block_count": vision.num_hidden_layers,  # it leaves out the last one by itself
        "attention.head_count": vision.num_attention_heads,
    }.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps)
    writer.add_array("clip.vision.image_mean", MEAN)
    writer.add_array("clip.vision.image_std", DEVIATION)


def _write(path: Path, architecture: str, describe: Callable[[GGUFWriter], None], tensors: list[Tensor]) -> None:
    writer = GGUFWriter(path, architecture)
    describe(writer)
    for name, shape, kind in tensors:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), _bytes(shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for name, shape, kind in tensors:
        writer.write_tensor_data(_drawn(random, name, shape, kind))
    writer.close()


def _bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    size = int(np.prod(shape))
    if kind in BLOCKS:
        weights, stored = BLOCKS[kind]
        return size // weights * stored
    return size * (2 if kind is Kind.F16 else 4)


def _drawn(random: np.random.Generator, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> np.ndarray:
    if kind not in BLOCKS:
        if "norm" in name or ".ln" in name or "_ln" in name:
            return np.full(shape, name.endswith("weight"), np.float32)
        values = (random.random(shape, np.float32) - 0.5) * np.float32(0.02 * 12**0.5)
        return values.astype(np.float16 if kind is Kind.F16 else np.float32)
    _, stored = BLOCKS[kind]
    blocks = np.frombuffer(random.bytes(_bytes(shape, kind)), np.uint8).reshape(-1, stored).copy()
    scale = np.frombuffer(np.float16(SCALES[kind]).tobytes(), np.uint8)
    blocks[:, slice(-2, None) if kind is Kind.Q6_K else slice(2)] = scale
    return blocks

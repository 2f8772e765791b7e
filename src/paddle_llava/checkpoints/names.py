"""The model's parameters under our own names, and what each layout calls them.

A layout is one table of templates from our names to its own; `{}` stands for the number of a layer. The
decoder's names agree everywhere after a prefix; the vision tower's exist in two spellings. Tables are used
from left to right for writing and, inverted, for reading.

Sources: `transformers` (`LlavaForConditionalGeneration` and its older forms), haotian-liu/LLaVA
(`llava_arch.py`), PaddleMIX (`paddlemix/models/llava`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from paddle_llava.config import Layout, LlavaConfig
from paddle_llava.errors import LlavaError

Table = dict[str, str]
Shape = tuple[int, ...]

_KINDS = ("weight", "bias")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_DECODER = [
    "embed_tokens",
    "norm",
    "layers.{}.input_layernorm",
    "layers.{}.post_attention_layernorm",
    *(f"layers.{{}}.self_attn.{name}" for name in _ATTENTION),
    *(f"layers.{{}}.mlp.{name}" for name in _MLP),
]
_CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_CLIP = {  # ours: (transformers', Paddle's)
    "patch_embedding": ("embeddings.patch_embedding", "conv1"),
    "position_embedding": ("embeddings.position_embedding", "positional_embedding"),
    "pre_layernorm": ("pre_layrnorm", "ln_pre"),
    "post_layernorm": ("post_layernorm", "ln_post"),
    "layers.{}.layer_norm1": ("encoder.layers.{}.layer_norm1", "transformer.layers.{}.norm1"),
    "layers.{}.layer_norm2": ("encoder.layers.{}.layer_norm2", "transformer.layers.{}.norm2"),
    "layers.{}.mlp.fc1": ("encoder.layers.{}.mlp.fc1", "transformer.layers.{}.linear1"),
    "layers.{}.mlp.fc2": ("encoder.layers.{}.mlp.fc2", "transformer.layers.{}.linear2"),
}
for _name in _CLIP_ATTENTION:
    _CLIP[f"layers.{{}}.self_attn.{_name}"] = (
        f"encoder.layers.{{}}.self_attn.{_name}",
        f"transformer.layers.{{}}.self_attn.{_name}",
    )


def _both(modules: Mapping[str, str]) -> Table:
    """The table of parameters for a table of modules."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items() for kind in _KINDS}


def _clip(prefix: str, *, paddle: bool = False) -> Table:
    embedding = "class_embedding" if paddle else "embeddings.class_embedding"
    modules = {f"vision_tower.{ours}": prefix + theirs[paddle] for ours, theirs in _CLIP.items()}
    return {"vision_tower.class_embedding": prefix + embedding} | _both(modules)


def _joined(tower: Table, projector: Table, newline: str, decoder: str, lm_head: str) -> Table:
    modules = {f"language_model.{name}": decoder + name for name in _DECODER}
    return tower | _both(projector | modules | {"lm_head": lm_head}) | {"image_newline": newline}


def _hf(root: str, decoder: str, lm_head: str, tower: str) -> Table:
    projector = {f"projector.{2 * i}": f"{root}multi_modal_projector.linear_{i + 1}" for i in (0, 1)}
    return _joined(_clip(root + tower), projector, root + "image_newline", decoder, lm_head)


def _flat(root: str, projector: Table, *, paddle: bool) -> Table:
    tower = _clip(root + "vision_tower.vision_tower.vision_model.", paddle=paddle)
    return _joined(tower, projector, root + "image_newline", root, "lm_head")


def _flat_tables(root: str, *, paddle: bool = False) -> list[Table]:
    """With the projector as a sequence of layers, and as a single one (`linear`)."""
    sequence, single = {"projector.{}": root + "mm_projector.{}"}, {"projector.0": root + "mm_projector"}
    return [_flat(root, sequence, paddle=paddle), _flat(root, single, paddle=paddle)]


# All are read; the first is written, and the second for a `linear` projector of the original layouts.
_TABLES: dict[Layout, list[Table]] = {
    "hf": [
        _hf("", "language_model.model.", "language_model.lm_head", "vision_tower.vision_model."),
        _hf("", "language_model.model.", "language_model.lm_head", "vision_tower."),
        _hf("model.", "model.language_model.", "lm_head", "vision_tower.vision_model."),
        _hf("model.", "model.language_model.", "lm_head", "vision_tower."),
    ],
    "original": _flat_tables("model."),
    "paddle": _flat_tables("llama.", paddle=True),
}
_TOWER_TABLES: dict[Layout, list[Table]] = {
    "hf": [_clip("vision_model."), _clip("")],
    "paddle": [_clip("vision_model.", paddle=True)],
}


def _inverted(tables: dict[Layout, list[Table]]) -> dict[Layout, Table]:
    return {
        layout: {theirs: ours for table in alternatives for ours, theirs in table.items()}
        for layout, alternatives in tables.items()
    }


CHECKPOINT_NAMES = _inverted(_TABLES)
TOWER_NAMES = _inverted(_TOWER_TABLES)
# Buffers that older files carry and that are computed anew, and the half of CLIP that reads text.
IGNORED = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|position_ids)")
IGNORED_IN_TOWER = re.compile(
    r"(.*\.)?position_ids|text_model\..*|logit_scale|(text|visual|vision)_projection(\.weight)?"
)


def _translated(name: str, table: Mapping[str, str]) -> str | None:
    if name in table:
        return table[name]
    number = re.search(r"(?<=\.)[0-9]+(?=\.)", name)
    if number is None:
        return None
    template = table.get(name[: number.start()] + "{}" + name[number.end() :])
    return template and template.replace("{}", number.group())


def canonical_name(stored: str, names: Mapping[str, str]) -> str | None:
    """Our name of the tensor `stored`, by a table of `CHECKPOINT_NAMES` or `TOWER_NAMES`; None if unknown."""
    return _translated(stored, names)


def stored_names(config: LlavaConfig, layout: Layout) -> dict[str, str]:
    """What `layout` calls each parameter of the model: our name -> its name."""
    single = layout != "hf" and config.projector_type == "linear"
    return _stored(parameter_shapes(config), _TABLES[layout][single])


def transformers_names(config: LlavaConfig) -> dict[str, str]:
    """What the parameters are called inside `transformers` 5, whose modules adapters name: our name -> its name."""
    return _stored(parameter_shapes(config), _TABLES["hf"][-1])


def tower_names(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """What a separate vision tower calls the parameters `names` of ours."""
    return _stored(names, _TOWER_TABLES[layout][0])


def _stored(names: Iterable[str], table: Table) -> dict[str, str]:
    stored = {}
    for ours in names:
        theirs = _translated(ours, table)
        if theirs is None:
            raise LlavaError(f"this layout has no name for {ours}")
        stored[ours] = theirs
    return stored


def detect_layout(names: Iterable[str], known: Mapping[Layout, Table] = CHECKPOINT_NAMES) -> Layout:
    """The layout that knows most of `names`. Raises `LlavaError` when none knows any."""
    names = list(names)
    score = {layout: sum(canonical_name(name, table) is not None for name in names) for layout, table in known.items()}
    best = max(score, key=lambda layout: score[layout])
    if not score[best]:
        seen = ", ".join(repr(name[:80]) for name in names[:3]) or "no tensors at all"
        raise LlavaError(f"no layout has names like these: {seen}")
    return best


def is_linear(name: str) -> bool:
    """Whether `name` is a Linear layer's weight: [in, out] here and in Paddle, [out, in] elsewhere."""
    return name.endswith(("proj.weight", "fc1.weight", "fc2.weight", "lm_head.weight")) or (
        name.startswith("projector.") and name.endswith(".weight")
    )


def parameter_shapes(config: LlavaConfig) -> dict[str, Shape]:
    """Every parameter of the model and its shape; Linear weights are [in, out]."""
    vision, text = config.vision, config.text
    shapes: dict[str, Shape] = {}

    def linear(name: str, inputs: int, outputs: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (inputs, outputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (vision.hidden_size,)

    shapes["vision_tower.class_embedding"] = (vision.hidden_size,)
    patch = (vision.num_channels, vision.patch_size, vision.patch_size)
    shapes["vision_tower.patch_embedding.weight"] = (vision.hidden_size, *patch)
    shapes["vision_tower.position_embedding.weight"] = (vision.num_patches + 1, vision.hidden_size)
    layer_norm("vision_tower.pre_layernorm")
    for i in range(vision.num_hidden_layers):
        layer = f"vision_tower.layers.{i}"
        layer_norm(f"{layer}.layer_norm1")
        for name in _CLIP_ATTENTION:
            linear(f"{layer}.self_attn.{name}", vision.hidden_size, vision.hidden_size, True)
        layer_norm(f"{layer}.layer_norm2")
        linear(f"{layer}.mlp.fc1", vision.hidden_size, vision.intermediate_size, True)
        linear(f"{layer}.mlp.fc2", vision.intermediate_size, vision.hidden_size, True)
    layer_norm("vision_tower.post_layernorm")

    for i in range(config.projector_depth):
        inputs = text.hidden_size if i else vision.hidden_size
        linear(f"projector.{2 * i}", inputs, text.hidden_size, config.projector_bias)
    if config.has_image_newline:
        shapes["image_newline"] = (text.hidden_size,)

    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    shapes["language_model.embed_tokens.weight"] = (text.vocab_size, text.hidden_size)
    for i in range(text.num_hidden_layers):
        layer = f"language_model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (text.hidden_size,)
        linear(f"{layer}.self_attn.q_proj", text.hidden_size, queries, text.attention_bias)
        linear(f"{layer}.self_attn.k_proj", text.hidden_size, keys, text.attention_bias)
        linear(f"{layer}.self_attn.v_proj", text.hidden_size, keys, text.attention_bias)
        linear(f"{layer}.self_attn.o_proj", queries, text.hidden_size, text.attention_bias)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (text.hidden_size,)
        linear(f"{layer}.mlp.gate_proj", text.hidden_size, text.intermediate_size, text.mlp_bias)
        linear(f"{layer}.mlp.up_proj", text.hidden_size, text.intermediate_size, text.mlp_bias)
        linear(f"{layer}.mlp.down_proj", text.intermediate_size, text.hidden_size, text.mlp_bias)
    shapes["language_model.norm.weight"] = (text.hidden_size,)
    if not text.tie_word_embeddings:
        shapes["lm_head.weight"] = (text.hidden_size, text.vocab_size)
    return shapes

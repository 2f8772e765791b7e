"""Live against transformers and torch: their files read by us, our files read by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llava.checkpoints.read import Checkpoint, open_checkpoint
from paddle_llava.checkpoints.write import write_checkpoint
from paddle_llava.config import LlavaConfig

pytestmark = pytest.mark.parity


def build(anyres: bool, tied: bool) -> Any:
    import torch
    import transformers

    torch.manual_seed(1)
    vision = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        tie_word_embeddings=tied,
    )
    settings: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": 90}
    if anyres:
        pinpoints = [[28, 56], [56, 28]]
        config = transformers.LlavaNextConfig(**settings, image_grid_pinpoints=pinpoints, tie_word_embeddings=tied)
        return transformers.LlavaNextForConditionalGeneration(config)
    return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**settings, tie_word_embeddings=tied))


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(folder, LlavaConfig.from_dict(json.loads((folder / "config.json").read_text())))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("anyres", "tied"), [(False, False), (False, True), (True, False)])
def test_there_and_back(tmp_path: Path, anyres: bool, tied: bool, dtype: str) -> None:
    import torch

    model = build(anyres, tied).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    with opened(tmp_path / "theirs") as checkpoint:
        assert checkpoint.layout == "hf"
        q_proj = checkpoint.read("language_model.layers.1.self_attn.q_proj.weight")
        expected = model.model.language_model.layers[1].self_attn.q_proj.weight.detach().T
        assert q_proj.tobytes() == expected.contiguous().view(torch.uint8).numpy().tobytes()
        write_checkpoint(tmp_path / "paddle", checkpoint.config, checkpoint, "paddle", max_shard_bytes=50_000)
    with opened(tmp_path / "paddle") as checkpoint:
        write_checkpoint(tmp_path / "ours", checkpoint.config, checkpoint, "hf", max_shard_bytes=50_000)

    again, info = type(model).from_pretrained(tmp_path / "ours", dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    assert again.dtype == model.dtype
    theirs, ours = model.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_torch_files(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    model = build(True, False).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    with opened(tmp_path) as checkpoint:
        expected = {name: checkpoint.read(name) for name in checkpoint.names()}
    (tmp_path / "model.safetensors").unlink()
    names = list(tensors)
    weight_map = {name: f"pytorch_model-{i % 2 + 1:05d}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        part = {name: torch.nn.Parameter(tensors[name]) for name in names if weight_map[name] == file}
        torch.save(part, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with opened(tmp_path) as checkpoint:
        assert all(np.array_equal(checkpoint.read(name), array) for name, array in expected.items())


def test_their_own_clip_is_a_tower(tmp_path: Path) -> None:
    """As transformers writes a CLIPVisionModel today, without `vision_model.` before its names."""
    import transformers

    model = build(False, False)
    model.save_pretrained(tmp_path / "llava")
    transformers.CLIPVisionModel(model.config.vision_config).save_pretrained(tmp_path / "clip")
    config = LlavaConfig.from_dict(json.loads((tmp_path / "llava" / "config.json").read_text()))
    with open_checkpoint(tmp_path / "llava", config) as checkpoint:
        write_checkpoint(tmp_path / "original", config, checkpoint, "original")
    from safetensors.numpy import load_file, save_file

    weights = tmp_path / "original" / "model.safetensors"
    save_file({n: a for n, a in load_file(weights).items() if "vision_tower" not in n}, weights)
    with open_checkpoint(tmp_path / "original", config, tower=lambda: tmp_path / "clip") as checkpoint:
        assert not checkpoint.carries_vision_tower
        found = checkpoint.read("vision_tower.layers.0.mlp.fc1.weight")
    clip = load_file(tmp_path / "clip" / "model.safetensors")
    assert np.array_equal(found, clip["encoder.layers.0.mlp.fc1.weight"].T)

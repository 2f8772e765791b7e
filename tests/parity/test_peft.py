"""Adapters both ways: `peft` on a `transformers` LLaVA loads ours, we load its own, and the logits agree."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from reference import Reference, write_checkpoint

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.checkpoints.adapter import Adapter, write_adapter
from paddle_llava.checkpoints.names import parameter_shapes, stored_names
from paddle_llava.convert import convert
from paddle_llava.models.lora import LoRALinear, add_lora
from reference_cases import CASES, TOLERANCE, Case

pytestmark = pytest.mark.parity
COMPARED = [CASES["55x176"], CASES["no picture"], CASES["two pictures"]]


@dataclass(frozen=True)
class Base:
    folder: Path
    processor: LlavaProcessor

    def answers(self, model: LlavaForConditionalGeneration) -> list[np.ndarray]:
        return [model(**self.processor.prepare(list(c.prompts), c.pictures)).logits.numpy() for c in COMPARED]

    def assert_answers(self, found: list[np.ndarray], expected: list[np.ndarray]) -> None:
        plain = self.answers(LlavaForConditionalGeneration.from_pretrained(self.folder))
        for mine, theirs, without in zip(found, expected, plain, strict=True):
            assert np.abs(mine - theirs).max() < TOLERANCE
            assert np.abs(theirs - without).max() > 0.1  # the adapter does something


@pytest.fixture(scope="module", params=[False, True], ids=["v1.5", "v1.6"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint(folder, anyres=request.param, seed=5)
    return Base(folder, LlavaProcessor.from_pretrained(folder))


@torch.no_grad()
def answers_of(model: Any, reference: Reference, cases: list[Case] = COMPARED) -> list[np.ndarray]:
    model.eval()
    return [model(**reference.inputs(case)).logits.numpy() for case in cases]


@pytest.mark.parametrize("projector", [True, False], ids=["projector", "adapters only"])
def test_peft_loads_ours(base: Base, tmp_path: Path, projector: bool) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(base.folder)
    add_lora(model, stored_names(model.config, "paddle"), ["llama.layer.*_proj.*"], rank=6, alpha=9.0, dropout=0.1)
    random = np.random.default_rng(0)
    adapter = Adapter(6, 9.0, 0.1, str(base.folder))
    for name, layer in model.named_sublayers():
        if isinstance(layer, LoRALinear):
            layer.lora_B.set_value(random.standard_normal(layer.lora_B.shape, dtype=np.float32) * 0.1)
            adapter.pairs[name] = (layer.lora_A.numpy(), layer.lora_B.numpy())
    for name, parameter in model.projector.named_parameters("projector") if projector else []:
        parameter.set_value(parameter.numpy() + random.standard_normal(parameter.shape, dtype=np.float32) * 0.05)
        adapter.whole[name] = parameter.numpy()
    write_adapter(tmp_path / "adapter", adapter, model.config)

    reference = Reference(base.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of missing keys, for one
        loaded = peft.PeftModel.from_pretrained(reference.model, tmp_path / "adapter")
        again = loaded.load_adapter(tmp_path / "adapter", "again")
    assert not again.unexpected_keys
    assert not [key for key in again.missing_keys if "again" in key]
    base.assert_answers(base.answers(model), answers_of(loaded, reference))
    merged = loaded.merge_and_unload()
    base.assert_answers(base.answers(model), answers_of(merged, reference))


TARGETS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "v_proj"]},  # those of the vision tower too
    "list and projector": {"target_modules": ["up_proj", "o_proj"], "modules_to_save": ["multi_modal_projector"]},
    "expression": {"target_modules": r".*language_model\.layers\.[01]\..*(k|down)_proj"},
    "expression and projector": {
        "target_modules": r".*language_model.*\.gate_proj",
        "modules_to_save": ["multi_modal_projector"],
    },
    "all-linear": {"target_modules": "all-linear"},
    "all-linear and head": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    "some layers, gaussian": {
        "target_modules": ["gate_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
        "init_lora_weights": "gaussian",
    },
}


@pytest.mark.parametrize("targets", TARGETS)
def test_we_load_peft_s(base: Base, tmp_path: Path, targets: str) -> None:
    reference = Reference(base.folder)
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(
        reference.model, peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, **TARGETS[targets])
    )
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "lora_B" in name else 0.05))
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = answers_of(wrapped, reference)

    model = LlavaForConditionalGeneration.from_pretrained(base.folder, lora_path=tmp_path / "adapter")
    base.assert_answers(base.answers(model), expected)
    convert(base.folder, tmp_path / "merged", "hf", lora_path=tmp_path / "adapter")
    merged = Reference(tmp_path / "merged")
    assert not any(merged.loading.values())
    base.assert_answers(answers_of(merged.model, merged), expected)


def test_our_adapter_survives_peft(base: Base, tmp_path: Path) -> None:
    """What PEFT writes of an adapter of ours that it has loaded is that adapter."""
    config = LlavaForConditionalGeneration.from_pretrained(base.folder).config
    shapes = parameter_shapes(config)
    random = np.random.default_rng(2)
    name = "language_model.layers.1.mlp.down_proj"
    halves = [(shapes[f"{name}.weight"][0], 4), (4, shapes[f"{name}.weight"][1])]
    a, b = (random.standard_normal(shape, dtype=np.float32) for shape in halves)
    whole = {n: random.standard_normal(s, dtype=np.float32) for n, s in shapes.items() if n.startswith("projector.")}
    write_adapter(tmp_path / "ours", Adapter(4, 8.0, 0.0, "base", {name: (a, b)}, whole), config)
    loaded = peft.PeftModel.from_pretrained(Reference(base.folder).model, tmp_path / "ours")
    loaded.save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        LlavaForConditionalGeneration.from_pretrained(base.folder, lora_path=tmp_path / side).state_dict()
        for side in ("ours", "theirs")
    )
    assert all(np.array_equal(ours[key].numpy(), theirs[key].numpy()) for key in ours)

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import paddle
import pytest

from paddle_llava import LlavaError, LlavaForConditionalGeneration
from paddle_llava.checkpoints.names import stored_names
from paddle_llava.models.lora import add_lora
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.optimizer import (
    build_optimizer,
    learning_rate_factor,
    part_of,
    select_trainable,
    trainable,
)
from paddle_llava.training.parallel import World
from paddle_llava.training.step import Stepper
from reference_cases import CHECKPOINTS, FIXTURES
from training_samples import loss, make_sample

PRETRAIN = {"freeze_include": ["*llama*", "*lm_head*"], "freeze_exclude": ["*llama.mm_projector*"]}
V15, V16 = CHECKPOINTS


def config_of(**changes: Any) -> TrainingConfig:
    base = {"model_name_or_path": "m", "dataset": {"train": [{}]}, "output_dir": "o", "learning_rate": 1e-2}
    return TrainingConfig.from_dict({**base, **changes})


def load(checkpoint: str = V15, **changes: Any) -> tuple[LlavaForConditionalGeneration, TrainingConfig]:
    """A model and what learns of it, with adapters for `lora`."""
    model, config = LlavaForConditionalGeneration.from_pretrained(FIXTURES / checkpoint), config_of(**changes)
    if config.lora:
        names = stored_names(model.config, "paddle")
        add_lora(model, names, config.lora_target_modules, config.lora_rank, config.lora_alpha, config.lora_dropout)
    select_trainable(model, model.config, config)
    model.train()
    return model, config


def learning_parts(model: LlavaForConditionalGeneration) -> set[str]:
    return {part_of(name) for name in trainable(model)}


def arrays(model: LlavaForConditionalGeneration) -> dict[str, np.ndarray]:
    return {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}


def steps(model: LlavaForConditionalGeneration, config: TrainingConfig, count: int) -> paddle.optimizer.AdamW:
    optimizer = build_optimizer(model, config, 10)
    random = np.random.default_rng(0)
    for _ in range(count):
        loss(model, [[make_sample(model.config, random, 6, 9, (70, 120))]]).backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        optimizer._learning_rate.step()
    return optimizer


# --- which parameters learn


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_vision_tower_stays_as_it_is(checkpoint: str) -> None:
    model, _ = load(checkpoint)
    names = {name for name, _ in model.named_parameters()}
    assert trainable(model).keys() == {name for name in names if not name.startswith("vision_tower.")}
    assert ("lm_head.weight" in names, "image_newline" in names) == ((False, False), (True, True))[checkpoint == V16]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_pretraining_learns_the_projector(checkpoint: str) -> None:
    """With tied embeddings too, where no parameter is called lm_head."""
    model, _ = load(checkpoint, **PRETRAIN)
    assert trainable(model).keys() == {f"projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}


@pytest.mark.parametrize("feature_layer", [-2, -1, 1])
def test_of_the_tower_what_is_read_learns(feature_layer: int) -> None:
    """The rest would have no gradient, and processes that wait for one would wait for ever."""
    model, config = load(V15)
    model.config = type(model.config)(**{**vars(model.config), "vision_feature_layer": feature_layer})
    model.vision_tower.used_layers = feature_layer if feature_layer >= 0 else 4 + feature_layer
    config = config_of(vision_tower_lr=1e-6)
    select_trainable(model, model.config, config)
    loss(model, [[make_sample(model.config, np.random.default_rng(0), 3, 4, (50, 50))]]).backward()
    without_gradient = [name for name, parameter in trainable(model).items() if parameter.grad is None]
    assert not without_gradient
    layers = {int(name.split(".")[2]) for name in trainable(model) if name.startswith("vision_tower.layers.")}
    assert layers == set(range(model.vision_tower.used_layers))
    assert "vision_tower.pre_layernorm.weight" in trainable(model)
    assert "vision_tower.post_layernorm.weight" not in trainable(model)


def test_lora_learns_adapters_and_projector() -> None:
    model, _ = load(V16, lora=True, lora_rank=4)
    adapters = {name for name in trainable(model) if ".lora_" in name}
    assert len(adapters) == 2 * 7 * model.config.text.num_hidden_layers
    assert {part_of(name) for name in trainable(model).keys() - adapters} == {"projector"}
    frozen, _ = load(V16, lora=True, lora_rank=4, freeze_include=["*mm_projector*"])
    assert trainable(frozen).keys() == adapters


def test_patterns() -> None:
    model, _ = load(V15, freeze_include=["llama.layers.[01].*", "*embed_tokens*"], freeze_exclude=["*.mlp.up_proj.*"])
    learning = trainable(model)
    assert "language_model.layers.0.mlp.up_proj.weight" in learning
    assert "language_model.layers.2.self_attn.q_proj.weight" in learning
    assert "language_model.layers.1.self_attn.q_proj.weight" not in learning
    assert "language_model.embed_tokens.weight" not in learning


TOWER = "*.vision_tower.*"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"freeze_exclude": [TOWER]}, "the vision tower learns only with a vision_tower_lr"),
        ({"freeze_exclude": [TOWER], "lora": True}, "with lora only its adapters and the projector learn"),
        ({"freeze_exclude": ["*embed_tokens*"], "lora": True}, "with lora only its adapters and the projector learn"),
        ({"freeze_exclude": ["*.ln_post.*"], "vision_tower_lr": 1e-6}, "LLaVA does not read that part"),
        ({"freeze_exclude": [TOWER], "vision_tower_lr": 1e-6}, None),
        ({"freeze_exclude": ["*mm_projector*", "*lm_head*"], "lora": True}, None),
        ({"freeze_exclude": ["*"]}, None),
        (PRETRAIN, None),
    ],
)
def test_patterns_that_spare_nothing_are_named(changes: dict[str, Any], said: str | None) -> None:
    model, config = load(V15, lora_rank=2, **changes)
    notes = select_trainable(model, model.config, config)
    if said is None:
        assert notes == []
    else:
        (note,) = notes
        assert note.startswith(f"freeze_exclude: {config.freeze_exclude[0]!r} has no effect, for {said}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"freeze_include": ["*llama*"]}, "freeze_include leaves no parameter to learn; add a pattern"),
        ({"freeze_include": ["*"]}, "freeze_include leaves no parameter to learn; add a pattern"),
        (
            {"freeze_include": ["*"], "freeze_exclude": [TOWER]},
            f"freeze_include leaves no parameter to learn; freeze_exclude: {TOWER!r} has no effect, for the vision",
        ),
        ({"freeze_include": ["*projector.*", "*clip*"]}, "freeze_include: '*clip*' matches no parameter"),
        ({"freeze_exclude": ["model.layers.*"]}, "freeze_exclude: 'model.layers.*' matches no parameter"),
        ({"lora": True, "vision_tower_lr": 1e-6}, "vision_tower_lr: with lora the vision tower stays"),
    ],
)
def test_nothing_to_learn(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(LlavaError, match=re.escape(said)) as caught:
        load(V15, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_what_does_not_learn_stays_bit_for_bit(checkpoint: str, lora: bool) -> None:
    model, config = load(checkpoint, lora=lora, lora_rank=4, weight_decay=0.1)
    before = arrays(model)
    steps(model, config, 3)
    changed = {name for name, array in arrays(model).items() if not np.array_equal(array, before[name])}
    assert changed == trainable(model).keys()


# --- rates


@pytest.mark.parametrize(("total", "warmup"), [(10, 0), (10, 3), (100, 7), (1, 0), (5, 5), (3, 8)])
def test_schedules(total: int, warmup: int) -> None:
    steps = np.arange(total + 3)
    rising = steps / max(warmup, 1)
    done = np.clip((steps - warmup) / max(total - warmup, 1), 0, 1)
    expected = {"linear": 1 - done, "cosine": np.cos(done * np.pi / 2) ** 2, "constant": np.ones(len(steps))}
    for kind, after in expected.items():
        found = [learning_rate_factor(int(step), total, warmup, kind) for step in steps]
        assert found == pytest.approx(np.where(steps < warmup, rising, after), abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "warmup"),
    [({}, 0), ({"warmup_steps": 4}, 4), ({"warmup_ratio": 0.03}, 1), ({"warmup_steps": 2, "warmup_ratio": 0.5}, 2)],
)
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_rate_of_each_step(changes: dict[str, Any], warmup: int, kind: str) -> None:
    model, config = load(V15, learning_rate=0.3, lr_scheduler_type=kind, **PRETRAIN, **changes)
    optimizer = build_optimizer(model, config, 20)
    rates = []
    for _ in range(21):
        rates.append(optimizer.get_lr())
        optimizer._learning_rate.step()
    assert rates[:warmup] == pytest.approx([0.3 * i / warmup for i in range(warmup)])
    assert rates[warmup] == 0.3
    assert rates[20] == pytest.approx(0.3 if kind == "constant" else 0.0, abs=1e-9)
    middle = rates[(20 + warmup) // 2]
    assert middle == pytest.approx(0.3 if kind == "constant" else 0.15, rel=0.1)


def test_every_part_has_its_rate_and_decay() -> None:
    """AdamW's first step moves each number by its rate, and by rate x decay of itself towards zero."""
    model, config = load(V16, learning_rate=1e-2, mm_projector_lr=2e-3, vision_tower_lr=5e-4, weight_decay=0.2)
    optimizer = build_optimizer(model, config, 10)
    before = arrays(model)
    random = np.random.default_rng(0)
    for parameter in trainable(model).values():
        signs = random.choice([-1.0, 1.0], parameter.shape).astype(np.float32)
        parameter.grad = paddle.to_tensor(signs)
    gradients = {name: parameter.grad.numpy() for name, parameter in trainable(model).items()}
    optimizer.step()
    rates = {"projector": 2e-3, "vision_tower": 5e-4}
    for name, gradient in gradients.items():
        rate = rates.get(part_of(name), 1e-2)
        decays = not (name.endswith("bias") or re.search(r"norm\d?\.", name))
        moved = trainable(model)[name].numpy() - before[name]
        expected = -rate * gradient - (rate * 0.2 * before[name] if decays else 0)
        assert np.abs(moved - expected).max() < 1e-4 * rate + 1e-6 * np.abs(before[name]).max(), name
    assert learning_parts(model) == {"vision_tower", "projector", "image_newline", "language_model", "lm_head"}


@pytest.mark.parametrize("limit", [0.5, 1e9, 0.0])
def test_one_norm_is_clipped_over_all_parameters(limit: float) -> None:
    """Whatever their rates and decays; the first moment is a tenth of the gradient that AdamW was given."""
    model, config = load(V15, mm_projector_lr=1e-3, weight_decay=0.1, max_grad_norm=limit)
    loss(model, [[make_sample(model.config, np.random.default_rng(0), 6, 9, (70, 120))]]).backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in trainable(model).items()}
    norm = math.sqrt(sum(float((gradient.astype(np.float64) ** 2).sum()) for gradient in gradients.values()))
    optimizer = build_optimizer(model, config, 10)
    told = Stepper(config, model, optimizer, "float32", World(), print).update()
    assert told == pytest.approx(norm, rel=1e-5)
    share = min(1.0, limit / norm) if limit else 1.0
    assert norm > 1
    for name, parameter in trainable(model).items():
        moment = optimizer._accumulators["moment1"][parameter.name].numpy()
        assert np.abs(moment - 0.1 * share * gradients[name]).max() <= 1e-5 * share * np.abs(gradients[name]).max(), (
            name
        )

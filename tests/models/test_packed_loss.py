"""The loss of samples packed into one row is the sum of their losses one by one, and so are its gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llava import LlavaForConditionalGeneration
from paddle_llava.checkpoints.names import stored_names
from paddle_llava.models.attention import TRAINING_BLOCK, attention, segmented_attention
from paddle_llava.models.lora import add_lora
from reference_cases import CHECKPOINTS, FIXTURES
from training_samples import IGNORED, Rows, Sample, gradients, inputs, loss, make_sample

ALL = [r"llama\.layers\..*_proj"]
PADDING = {"input_ids": 7, "labels": IGNORED, "position_ids": 3}


@pytest.fixture(params=CHECKPOINTS)
def model(request: pytest.FixtureRequest) -> LlavaForConditionalGeneration:
    """Of grouped heads (2 for keys, 8 for queries); everything learns that is used."""
    model = LlavaForConditionalGeneration.from_pretrained(FIXTURES / request.param)
    model.train()
    return model


def three_rows(model: LlavaForConditionalGeneration, pictures: bool = True) -> list[list[Sample]]:
    """Four samples in three rows of unequal length: with one picture, two, none, and one."""
    random = np.random.default_rng(0)
    one, two = [(40, 90)][:pictures], [(90, 40), (80, 80)][: 2 * pictures]
    first, second = make_sample(model.config, random, 4, 5, *one), make_sample(model.config, random, 9, 2, *two)
    third, fourth = make_sample(model.config, random, 30, 12), make_sample(model.config, random, 3, 8, *one)
    return [[first, third, fourth], [second], [third, fourth]]


def one_by_one(model: LlavaForConditionalGeneration, rows: Rows) -> tuple[float, dict[str, np.ndarray]]:
    total = 0.0
    for row in rows:
        for sample in row:
            alone = loss(model, [[sample]])
            alone.backward()
            total += float(alone)
    return total, gradients(model)


def assert_same_gradients(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """To 1e-4 of each parameter's largest; a bias of CLIP's keys has none but rounding's."""
    assert found.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        apart = np.abs(found[name] - gradient).max()
        assert apart <= 1e-4 * np.abs(gradient).max() + 1e-6 * largest, name


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "words"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_packed_is_the_sum_of_one_by_one(model: LlavaForConditionalGeneration, pictures: bool, recompute: bool) -> None:
    rows = three_rows(model, pictures)
    expected, expected_gradients = one_by_one(model, rows)
    model.language_model.recompute = recompute
    packed = loss(model, rows)
    packed.backward()
    assert float(packed) == pytest.approx(expected, rel=1e-5)
    assert_same_gradients(gradients(model), expected_gradients)
    assert np.abs(expected_gradients["language_model.layers.0.self_attn.k_proj.weight"]).max() > 1e-3
    assert ("projector.0.weight" in expected_gradients) == pictures


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_frozen_tower_changes_no_other_gradient(model: LlavaForConditionalGeneration, recompute: bool) -> None:
    rows = three_rows(model)
    model.language_model.recompute = recompute
    loss(model, rows).backward()
    learnt = gradients(model)
    for parameter in model.vision_tower.parameters():
        parameter.stop_gradient = True
    loss(model, rows).backward()
    frozen = gradients(model)
    assert_same_gradients(frozen, {name: g for name, g in learnt.items() if not name.startswith("vision_tower")})
    assert np.abs(learnt["vision_tower.patch_embedding.weight"]).max() > 1e-3


def test_samples_of_a_row_do_not_see_each_other(model: LlavaForConditionalGeneration) -> None:
    rows = three_rows(model)
    first, third, fourth = rows[0]
    silent = replace(first, labels=np.full_like(first.labels, IGNORED))
    other = replace(silent, input_ids=silent.input_ids[::-1].copy(), pixel_values=-silent.pixel_values)
    seen = [float(loss(model, [[before, third, fourth]])) for before in (silent, other)]
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)
    length = inputs([[silent, third, fourth]])["input_ids"].shape[1]
    together = [float(loss(model, [[before, third, fourth]], lengths=[[length]])) for before in (silent, other)]
    assert abs(together[0] - together[1]) > 1e-3  # they would, were they one sample


def test_padding_changes_nothing(model: LlavaForConditionalGeneration) -> None:
    rows = three_rows(model)[1:]
    arrays = inputs(rows)
    longer = {key: np.pad(arrays[key], ((0, 0), (0, 7)), constant_values=fill) for key, fill in PADDING.items()}
    lengths = [[*row, 7] for row in arrays["lengths"]]
    assert float(loss(model, rows, **longer, lengths=lengths)) == pytest.approx(float(loss(model, rows)), rel=1e-6)


def test_loss_is_the_cross_entropy_of_the_logits(model: LlavaForConditionalGeneration) -> None:
    total = 0.0
    for sample in three_rows(model)[0]:
        pixels = {"pixel_values": sample.pixel_values, "image_sizes": sample.image_sizes} if sample.image_sizes else {}
        with paddle.no_grad():
            logits = model(sample.input_ids[None], **pixels).logits.numpy()[0].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        answer = np.flatnonzero(sample.labels != IGNORED) + 1
        total -= logs[answer - 1, sample.input_ids[answer]].sum()
    assert float(loss(model, three_rows(model)[:1])) == pytest.approx(total, rel=1e-5)


def test_recompute_reaches_adapters_behind_frozen_embeddings(model: LlavaForConditionalGeneration) -> None:
    """Without pictures nothing that the first layer takes wants a gradient, and still its adapters learn."""
    names = stored_names(model.config, "paddle")
    add_lora(model, names, ALL, rank=4, alpha=8.0, dropout=0.25)
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = ".lora_" not in name
        if name.endswith("lora_B"):
            parameter.set_value(paddle.full_like(parameter, 0.02))
    found = []
    for recompute in (False, True):
        model.language_model.recompute = recompute
        paddle.seed(3)  # the same dropout
        loss(model, three_rows(model, pictures=False)).backward()
        found.append(gradients(model))
    assert_same_gradients(found[1], found[0])
    assert len(found[0]) == 2 * 7 * model.config.text.num_hidden_layers
    assert all(np.abs(gradient).max() > 0 for gradient in found[1].values())


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_no_target_is_a_loss_of_zero(model: LlavaForConditionalGeneration, recompute: bool) -> None:
    model.language_model.recompute = recompute
    rows = three_rows(model)
    none = loss(model, rows, labels=np.full_like(inputs(rows)["labels"], IGNORED))
    none.backward()
    assert float(none) == 0.0
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_only_the_projector_learns_and_no_picture_is_there(model: LlavaForConditionalGeneration) -> None:
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not name.startswith("projector.")
    for recompute in (False, True):
        model.language_model.recompute = recompute
        rows = three_rows(model, pictures=False)
        value = loss(model, rows)
        value.backward()
        assert float(value) > 0
        assert gradients(model) == {}


def test_what_does_not_fit_is_refused(model: LlavaForConditionalGeneration) -> None:
    rows = three_rows(model)
    lengths = inputs(rows)["lengths"]
    with pytest.raises(ValueError, match="image tokens in input_ids, but 0 image features"):
        loss(model, rows, pixel_values=None)
    with pytest.raises(ValueError, match="image_sizes are needed"):
        loss(model, rows, image_sizes=None)
    for wrong in (lengths[:-1], [[*row[:-1], row[-1] - 1] for row in lengths]):
        with pytest.raises(ValueError):
            loss(model, rows, lengths=wrong)
    sizes = paddle.to_tensor(inputs(rows)["image_sizes"])
    assert float(loss(model, rows, image_sizes=sizes)) == float(loss(model, rows))


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1)]),
)
def test_segmented_attention_is_attention_under_a_block_mask(lengths: list[list[int]], heads: tuple[int, int]) -> None:
    longest = max(map(sum, lengths))
    lengths = [[*row, longest - sum(row)] if sum(row) < longest else row for row in lengths]
    random = np.random.default_rng(longest)
    query, key, value = (
        paddle.to_tensor(random.standard_normal((len(lengths), n, longest, 6), dtype=np.float32))
        for n in (heads[0], heads[1], heads[1])
    )
    samples = np.stack([np.repeat(np.arange(len(row)), row) for row in lengths])
    visible = (samples[:, :, None] == samples[:, None]) & np.tri(longest, dtype=bool)
    mask = paddle.to_tensor(np.where(visible, 0.0, -1e9).astype(np.float32)).unsqueeze(1)
    expected = attention(query, key, value, mask, past=0).numpy()
    assert np.abs(segmented_attention(query, key, value, lengths).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("frozen", ["nothing", "query", "key", "value"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_the_written_gradient_is_that_of_the_composition(heads: tuple[int, int], frozen: str) -> None:
    """Over several blocks of queries, samples and rows; under an explicit mask Paddle differentiates by itself."""
    lengths = [[TRAINING_BLOCK + 7, 40], [30, 2 * TRAINING_BLOCK - 113]]
    total = sum(lengths[0])
    lengths[1][1] = total - lengths[1][0]
    random = np.random.default_rng(5)
    arrays = [random.standard_normal((2, n, total, 8), dtype=np.float32) for n in (heads[0], heads[1], heads[1])]
    weights = paddle.to_tensor(random.standard_normal(arrays[0].shape, dtype=np.float32))
    samples = np.stack([np.repeat(np.arange(len(row)), row) for row in lengths])
    visible = (samples[:, :, None] == samples[:, None]) & np.tri(total, dtype=bool)
    mask = paddle.to_tensor(np.where(visible, 0.0, -1e9).astype(np.float32)).unsqueeze(1)
    found = []
    for written in (True, False):
        inputs = {name: paddle.to_tensor(array) for name, array in zip(("query", "key", "value"), arrays, strict=True)}
        for name, tensor in inputs.items():
            tensor.stop_gradient = name == frozen
        output = (
            segmented_attention(*inputs.values(), lengths) if written else attention(*inputs.values(), mask, past=0)
        )
        (output * weights).sum().backward()
        found.append([output.numpy(), *(tensor.grad.numpy() for name, tensor in inputs.items() if name != frozen)])
        assert all(tensor.grad is None for name, tensor in inputs.items() if name == frozen)
    for ours, theirs in zip(*found, strict=True):
        assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(found[0][-1]).max() > 0.1

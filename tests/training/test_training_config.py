from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llava.errors import LlavaError
from paddle_llava.training.config import WITHOUT_EFFECT, TrainingConfig, file_and_overrides

# What users of PaddleMIX have in their files.
KNOWN = """model_name_or_path, text_model_name_or_path, use_flash_attention, freeze_include, freeze_exclude, dataset,
mixtoken, max_length, output_dir, overwrite_output_dir, recompute, per_device_train_batch_size,
gradient_accumulation_steps, per_device_eval_batch_size, eval_accumulation_steps, group_by_modality_length,
num_train_epochs, max_steps, learning_rate, mm_projector_lr, weight_decay, warmup_ratio, warmup_steps,
lr_scheduler_type, logging_steps, save_steps, save_strategy, eval_steps, evaluation_strategy, save_total_limit, fp16,
bf16, fp16_opt_level, do_train, do_eval, disable_tqdm, load_best_model_at_end, eval_with_do_generation,
skip_memory_metrics, benchmark, lora, lora_path, lora_rank, lora_alpha, lora_dropout, lora_target_modules, sharding,
sharding_parallel_degree, tensor_parallel_degree, seed, device, resume_from_checkpoint, report_to"""
OURS = sorted((Path(__file__).parents[2] / "config" / "llava").rglob("*.json"))

SMALL: dict[str, Any] = {
    "model_name_or_path": "some/model",
    "dataset": {"train": [{"data_files": "train.json"}]},
    "output_dir": "out",
}
# The shapes of PaddleMIX's seven files, with other values.
EVERY_FILE = {
    "model_name_or_path": "paddlemix/llava/llava-v1.5-7b",
    "dataset": {
        "train": [{"name": "chatml_dataset", "data_files": "a.json", "chat_template": "t.json"}],
        "eval": [{"name": "chatml_dataset", "data_files": "b.json", "chat_template": "t.json"}],
    },
    "mixtoken": False,
    "output_dir": "./out",
    "overwrite_output_dir": True,
    "recompute": True,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "per_device_eval_batch_size": 4,
    "eval_accumulation_steps": 5,
    "num_train_epochs": 2,
    "learning_rate": 3e-05,
    "warmup_ratio": 0.05,
    "lr_scheduler_type": "cosine",
    "logging_steps": 7,
    "save_steps": 50,
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "max_length": 1024,
    "fp16_opt_level": "O1",
    "do_train": True,
    "do_eval": False,
    "disable_tqdm": True,
    "save_total_limit": 2,
}
WHOLE = {**EVERY_FILE, "group_by_modality_length": False, "fp16": False}
PRETRAIN = {
    **WHOLE,
    "freeze_include": ["*llama*", "*lm_head*"],
    "freeze_exclude": ["*llama.mm_projector*"],
    "evaluation_strategy": "no",
    "eval_steps": 60,
}
LORA = {
    **EVERY_FILE,
    "mm_projector_lr": 4e-5,
    "weight_decay": 0.0,
    "bf16": False,
    "load_best_model_at_end": False,
    "eval_with_do_generation": False,
    "skip_memory_metrics": False,
    "benchmark": False,
    "lora": True,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": ["llama.layer.*q_proj.*", "llama.layer.*down_proj.*"],
}
STAGE_2 = {**LORA, "sharding": "stage2", "tensor_parallel_degree": 1, "sharding_parallel_degree": 8}
FILES = {"pretrain": PRETRAIN, "whole": WHOLE, "lora": LORA, "lora, stage 2": STAGE_2}


def write(folder: Path, value: Any) -> Path:
    path = folder / "config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def read(folder: Path, value: Any, **overrides: str) -> TrainingConfig:
    return TrainingConfig.read(write(folder, value), overrides)[0]


def error_of(folder: Path, value: Any, **overrides: str) -> str:
    with pytest.raises(LlavaError) as caught:
        read(folder, value, **overrides)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'config.json'}: ")
    assert "\n" not in message
    assert len(message) < len(str(folder)) + 300
    return message


@pytest.mark.parametrize("name", FILES)
def test_files_of_paddlemix(tmp_path: Path, name: str) -> None:
    raw = FILES[name]
    config, notes = TrainingConfig.read(write(tmp_path, raw))
    for key, value in raw.items():
        if key not in WITHOUT_EFFECT:
            assert getattr(config, key) == value
    assert [note.split()[0] for note in notes] == [key for key in raw if key in WITHOUT_EFFECT]
    assert all(len(note.splitlines()) == 1 and "has no effect here: " in note for note in notes)


def test_files_of_ours() -> None:
    assert OURS
    for path in OURS:
        config, _ = TrainingConfig.read(path)
        assert config.lora == ("lora" in path.name)


def test_every_key_that_users_have() -> None:
    keys = {key.strip() for key in KNOWN.split(",")}
    ours = {field.name for field in fields(TrainingConfig)}
    assert len(keys) == 53
    assert keys <= ours | WITHOUT_EFFECT.keys()
    assert not WITHOUT_EFFECT.keys() & ours


def test_defaults_are_the_recipe_s(tmp_path: Path) -> None:
    config = read(tmp_path, SMALL)
    assert (config.lr_scheduler_type, config.weight_decay, config.num_train_epochs) == ("cosine", 0.0, 1.0)
    assert (config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.max_grad_norm) == (0.9, 0.999, 1e-8, 1.0)
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (128, 256.0, 0.05)
    assert (config.vision_tower_lr, config.mm_projector_lr, config.lora) == (None, None, False)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learningrate", "learning_rate"),
        ("mix_token", "mixtoken"),
        ("lora_target_module", "lora_target_modules"),
        ("num_epochs", "num_train_epochs"),
        ("benchmarks", "benchmark"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, key: str, near: str) -> None:
    assert error_of(tmp_path, {**SMALL, key: 1}) == (
        f"{tmp_path / 'config.json'}: unknown key {key!r} (did you mean {near!r}?)"
    )


def test_an_unknown_key_like_nothing(tmp_path: Path) -> None:
    assert "did you mean" not in error_of(tmp_path, {**SMALL, "zzz\n" * 1000: 1})


@pytest.mark.parametrize("key", SMALL)
def test_what_must_be_there(tmp_path: Path, key: str) -> None:
    assert error_of(tmp_path, {k: v for k, v in SMALL.items() if k != key}).endswith(f": {key} is missing")
    assert error_of(tmp_path, {**SMALL, key: None}).endswith(f": {key} is missing")


def test_null_is_a_key_left_out(tmp_path: Path) -> None:
    nulls = {f.name: None for f in fields(TrainingConfig) if f.name not in SMALL}
    assert read(tmp_path, {**SMALL, **nulls}) == read(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lora", 1, "must be of type bool, found '1'"),
        ("lora", "true", "must be of type bool"),
        ("max_length", 2048.0, "must be of type int"),
        ("max_length", True, "must be of type int"),
        ("max_length", "2048", "must be of type int"),
        ("learning_rate", "1e-4", "must be of type float"),
        ("learning_rate", True, "must be of type float"),
        ("learning_rate", [], "must be of type float"),
        ("output_dir", 3, "must be of type str"),
        ("output_dir", " ", "must be a name or a path"),
        ("model_name_or_path", "", "must be a name or a path"),
        ("freeze_include", [1], "must be a list of strings"),
        ("freeze_include", {"a": 1}, "must be a list of strings"),
        ("lr_scheduler_type", "polynomial", "must be one of 'cosine', 'linear', 'constant', found 'polynomial'"),
        ("lr_scheduler_type", ["cosine"], "must be one of"),
        ("save_strategy", "best", "must be one of 'no', 'steps', 'epoch'"),
        ("evaluation_strategy", 1, "must be one of"),
        ("fp16_opt_level", "O3", "must be one of 'O1', 'O2'"),
        ("sharding", "stage4", "must be one of"),
        ("on_bad_sample", "ignore", "must be one of 'error', 'skip'"),
        ("report_to", ["wandb"], "must be among none, tensorboard, visualdl"),
        ("max_length", 0, "must be greater than 0, found 0"),
        ("max_length", 10**30, "is too large"),
        ("per_device_train_batch_size", -1, "must be greater than 0"),
        ("per_device_eval_batch_size", 0, "must be greater than 0"),
        ("gradient_accumulation_steps", 0, "must be greater than 0"),
        ("logging_steps", 0, "must be greater than 0"),
        ("save_steps", 0, "must be greater than 0"),
        ("eval_steps", 0, "must be greater than 0"),
        ("save_total_limit", 0, "must be greater than 0"),
        ("lora_rank", 0, "must be greater than 0"),
        ("lora_alpha", 0, "must be greater than 0"),
        ("lora_dropout", 1.0, "must be at least 0 and less than 1"),
        ("lora_dropout", -0.1, "must be at least 0 and less than 1"),
        ("learning_rate", 0, "must be greater than 0"),
        ("learning_rate", float("nan"), "must be greater than 0, found nan"),
        ("learning_rate", float("inf"), "must be greater than 0, found inf"),
        ("learning_rate", 10**400, "is too large"),
        ("mm_projector_lr", 0, "must be greater than 0"),
        ("vision_tower_lr", -1e-6, "must be greater than 0"),
        ("weight_decay", -0.1, "must be 0 or more"),
        ("max_grad_norm", float("nan"), "must be 0 or more"),
        ("adam_beta2", 1.0, "must be at least 0 and less than 1"),
        ("adam_epsilon", 0.0, "must be greater than 0"),
        ("warmup_ratio", 1.5, "must be between 0 and 1"),
        ("warmup_ratio", float("nan"), "must be between 0 and 1"),
        ("warmup_steps", -1, "must be 0 or more"),
        ("dataloader_num_workers", -1, "must be 0 or more"),
        ("seed", -1, "must be 0 or more"),
        ("num_train_epochs", float("inf"), "must be a number"),
        ("num_train_epochs", 1e308, "must be a number, at most 1000000000"),
        ("lora_rank", 2**31, "must be greater than 0, and at most 65536"),
        ("output_dir", "~nobody-of-that-name/out", "whose ~ stands for a home directory that there is"),
        ("resume_from_checkpoint", "~nobody-of-that-name/out", "whose ~ stands for"),
        ("lora_path", "~\0", "whose ~ stands for"),
        ("num_train_epochs", 0, "or max_steps must be greater than 0"),
        ("sharding_parallel_degree", 0, "must be greater than 0, or -1"),
        ("tensor_parallel_degree", -2, "must be greater than 0, or -1"),
        ("do_eval", True, "do_eval is set, but dataset.eval names no data file"),
        ("dataset", [], "dataset must be an object"),
        ("dataset", "train.json", "dataset must be an object"),
        ("dataset", {"train": "train.json"}, "dataset.train must be a list"),
        ("dataset", {"trian": []}, "dataset has train and eval, not 'trian' (did you mean 'train'?)"),
        ("dataset", {"train": []}, "do_train is set, but dataset.train names no data file"),
        ("dataset", {}, "do_train is set, but dataset.train names no data file"),
    ],
)
def test_types_and_bounds(tmp_path: Path, key: str, value: Any, said: str) -> None:
    message = error_of(tmp_path, {**SMALL, key: value})
    assert key in message
    assert said in message


def test_what_excludes_each_other(tmp_path: Path) -> None:
    assert "exclude each other" in error_of(tmp_path, {**SMALL, "fp16": True, "bf16": True})
    assert read(tmp_path, {**SMALL, "max_steps": 5, "num_train_epochs": 0}).max_steps == 5
    assert read(tmp_path, {**SMALL, "do_train": False, "dataset": {"eval": [{"data_files": "a"}]}}).dataset["eval"]


def test_what_is_stretched(tmp_path: Path) -> None:
    """An integer to a float, and a string to a list of one: nothing else."""
    raw = {**SMALL, "num_train_epochs": 3, "lora_alpha": 8, "freeze_include": "*llama*", "report_to": "visualdl"}
    config = read(tmp_path, raw)
    assert (config.num_train_epochs, config.lora_alpha) == (3.0, 8.0)
    assert type(config.num_train_epochs) is float
    assert (config.freeze_include, config.report_to) == (["*llama*"], ["visualdl"])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1', "\x00", "{" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_no_json_object(tmp_path: Path, text: str) -> None:
    assert "JSON" in error_of(tmp_path, text)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(LlavaError, match=r"nowhere\.json: cannot be read"):
        TrainingConfig.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "1", 1.0),
        ("max_steps", "-1", -1),
        ("max_length", "4096", 4096),
        ("lora", "true", True),
        ("lora", "True", True),
        ("lora", "1", True),
        ("recompute", "FALSE", False),
        ("recompute", "0", False),
        ("output_dir", "2024", "2024"),
        ("output_dir", "true", "true"),
        ("output_dir", '"quoted"', '"quoted"'),
        ("device", "gpu:0", "gpu:0"),
        ("device", "null", None),
        ("vision_tower_lr", "2e-6", 2e-6),
        ("vision_tower_lr", "None", None),
        ("save_strategy", "no", "no"),
        ("sharding", "", ""),
        ("lora_target_modules", '["a.*", "b"]', ["a.*", "b"]),
        ("lora_target_modules", "[qv]_proj", ["[qv]_proj"]),
        ("freeze_include", "*llama*", ["*llama*"]),
        ("freeze_include", "[]", []),
        ("dataset", '{"train": [{"data_files": "b.json"}]}', {"train": [{"data_files": "b.json"}]}),
    ],
)
def test_the_command_line_overrides(tmp_path: Path, key: str, text: str, expected: Any) -> None:
    found = getattr(read(tmp_path, {**SMALL, "learning_rate": 0.5}, **{key: text}), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("lora", "yes", "lora must be of type bool, found 'yes'"),
        ("max_steps", "ten", "max_steps must be of type int, found 'ten'"),
        ("max_steps", "1e3", "max_steps must be of type int, found '1000.0'"),
        ("learning_rate", "NaN", "learning_rate must be greater than 0"),
        ("learning_rate", "9" * 5000, "learning_rate must be of type float"),
        ("dataset", "{", "dataset must be an object"),
        ("dataset", "[" * 100_000, "dataset must be an object"),
        ("learning_rat", "1", "(did you mean 'learning_rate'?)"),
        ("output_dir", "null", "output_dir is missing"),
    ],
    ids=range(9),
)
def test_wrong_overrides(tmp_path: Path, key: str, text: str, said: str) -> None:
    assert said in error_of(tmp_path, SMALL, **{key: text})


def test_an_override_without_effect_is_named_too(tmp_path: Path) -> None:
    _, notes = TrainingConfig.read(write(tmp_path, SMALL), {"benchmark": "true"})
    assert notes == [f"benchmark has no effect here: {WITHOUT_EFFECT['benchmark']}"]


def test_packing_has_no_lengths_to_even_out(tmp_path: Path) -> None:
    grouped = {**SMALL, "group_by_modality_length": True}
    _, notes = TrainingConfig.read(write(tmp_path, grouped), {"mixtoken": "true"})
    assert [note.partition(":")[0] for note in notes] == ["group_by_modality_length has no effect here"]
    assert TrainingConfig.read(write(tmp_path, grouped))[1] == []


def test_the_version_that_means_a_template(tmp_path: Path) -> None:
    _, (note,) = TrainingConfig.read(write(tmp_path, {**SMALL, "version": "plain"}))
    assert "conv_mode" in note


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    text = json.dumps(SMALL)
    assert "'output_dir' is there twice" in error_of(tmp_path, f'{text[:-1]}, "output_dir": "b"}}')
    inner = text.replace('"data_files"', '"data_files": "a.json", "data_files"')
    assert "'data_files' is there twice" in error_of(tmp_path, inner)


def test_a_byte_order_mark_is_left_aside(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert TrainingConfig.read(path)[0] == TrainingConfig.from_dict(SMALL)


@pytest.mark.parametrize("place", [0, 2, 3, 8])
def test_flags(place: int) -> None:
    """Whatever stands between them."""
    arguments = ["--learning-rate", "1e-4", "--lora=true", "--max_steps", "-1", "--output_dir", "a=b", "--device="]
    arguments.insert(place, "lr=1e-4.json")
    assert file_and_overrides(arguments) == (
        Path("lr=1e-4.json"),
        {"learning_rate": "1e-4", "lora": "true", "max_steps": "-1", "output_dir": "a=b", "device": ""},
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["a.json", "learning_rate", "1"], "learning_rate: settings are given as --key value"),
        (["a.json", "--lora"], "--lora: settings are given as --key value"),
        (["-l", "1", "a.json"], "-l: settings are given as --key value"),
        (["--max_steps", "1", "a.json", "b.json"], "b.json: settings are given as --key value"),
        (["--max_steps", "1"], "CONFIG is missing: give a JSON file"),
        (["--lora", "a.json"], "CONFIG is missing: give a JSON file"),
    ],
)
def test_wrong_flags(wrong: list[str], said: str) -> None:
    with pytest.raises(LlavaError, match=f"^{said}"):
        file_and_overrides(wrong)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([f.name for f in fields(TrainingConfig)]), JSON)
def test_any_value_is_taken_or_refused_in_one_line(key: str, value: Any) -> None:
    message = f"{key} was taken"
    try:
        kept = getattr(TrainingConfig.from_dict({**SMALL, key: value}), key)
    except LlavaError as error:
        message = str(error)
    else:
        assert value is None or kept in (value, [value]) or (type(kept) is float and kept == float(value))
    assert key in message or "num_train_epochs" in message or "dataset" in message
    assert "\n" not in message

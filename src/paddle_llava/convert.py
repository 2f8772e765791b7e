"""One layout of a checkpoint -> another, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from paddle_llava.checkpoints.adapter import Merged, foreign_base, read_adapter
from paddle_llava.checkpoints.vocabulary import extend_vocabulary
from paddle_llava.checkpoints.write import MAX_SHARD_BYTES, Progress, TensorSource, write_checkpoint
from paddle_llava.config import Layout
from paddle_llava.console import note
from paddle_llava.errors import LlavaError
from paddle_llava.pretrained import find_pretrained
from paddle_llava.processing.processor import LlavaProcessor


def convert(
    source: str | Path,
    target: Path,
    layout: Layout,
    *,
    dtype: str | None = None,
    lora_path: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the checkpoint `source` (a name or a folder, of any layout) to the new folder `target` in `layout`.

    To the `hf` layout, an original vocabulary is extended by `<image>`, `<pad>` and 62 unused tokens, as the published
    twins have it; all other weights stay bit for bit what they were unless `dtype` (float32, float16,
    bfloat16) asks for another. The adapter in `lora_path` is merged into them. The tokenizer and the
    preprocessor go along. Raises `LlavaError`.
    """
    target = Path(target).expanduser()
    _check_target(target)
    pretrained = find_pretrained(source)
    processor = LlavaProcessor.from_pretrained(pretrained.folder)
    with pretrained.open_weights() as weights:
        kept = weights.dtype("language_model.embed_tokens.weight")
        config = replace(pretrained.config, dtype=dtype or kept)
        _begin(target, processor, layout)
        tensors: TensorSource = weights
        if lora_path is not None:
            adapter = read_adapter(Path(lora_path).expanduser(), pretrained.config)
            if foreign := foreign_base(adapter, str(source)):
                note(foreign)
            tensors = Merged(weights, adapter, dtype)
        if layout == "hf":
            tensors, config = extend_vocabulary(tensors, config)
        write_checkpoint(
            target, config, tensors, layout, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress
        )
    (target / MARKER).unlink()


# Marks a folder whose conversion is under way; one that was killed leaves it, and may be written again.
MARKER = ".incomplete"


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise LlavaError(f"{target}: already exists and is no folder; choose another place")
    if target.exists() and not (target / MARKER).exists() and any(target.iterdir()):
        raise LlavaError(f"{target}: already exists and is not an empty folder; choose another place")


def _begin(target: Path, processor: LlavaProcessor, layout: Layout) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / MARKER).touch()
        processor.save_pretrained(target, layout)
    except OSError as error:
        raise LlavaError(f"{target}: cannot be written ({error.strerror or error})") from None

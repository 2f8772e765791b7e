"""One layout of a checkpoint -> another, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from paddle_llava.checkpoints.vocabulary import extend_vocabulary
from paddle_llava.checkpoints.write import MAX_SHARD_BYTES, Progress, TensorSource, write_checkpoint
from paddle_llava.config import Layout
from paddle_llava.errors import LlavaError
from paddle_llava.pretrained import find_pretrained
from paddle_llava.processing.processor import LlavaProcessor


def convert(
    source: str | Path,
    target: Path,
    layout: Layout,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the checkpoint `source` (a name or a folder, of any layout) to the new folder `target` in `layout`.

    To the `hf` layout, an original vocabulary is extended by `<image>`, `<pad>` and 62 unused tokens, as the published
    twins have it; all other weights stay bit for bit what they were unless `dtype` (float32, float16, bfloat16) asks for
    another. The tokenizer and the preprocessor go along. Raises `LlavaError`.
    """
    target = Path(target).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LlavaError(f"{target}: already exists and is not an empty folder; choose another place")
    pretrained = find_pretrained(source)
    processor = LlavaProcessor.from_pretrained(pretrained.folder)
    tokenizer = processor.tokenizer
    with pretrained.open_weights() as weights:
        tensors: TensorSource = weights
        config = replace(pretrained.config, dtype=dtype or weights.dtype(weights.names()[0]))
        if layout == "hf":
            tensors, config = extend_vocabulary(weights, config)
            if tensors is not weights:
                tokenizer = tokenizer.with_image_token(config.image_token_id, config.text.pad_token_id)
        target.mkdir(parents=True, exist_ok=True)
        LlavaProcessor(config, processor.image_processor, tokenizer).save_pretrained(target)
        write_checkpoint(target, config, tensors, layout, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress)

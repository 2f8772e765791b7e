"""What a client may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from paddle_llava.errors import LlavaError
from paddle_llava.processing.fetching import ImageLimits


@dataclass(frozen=True)
class ServingLimits:
    """Sizes are in bytes, times in seconds.

    `max_batch` requests run at a time and `max_queue` more may wait. `request_time` is for a whole request, queue
    included; `header_time` and `body_time` for its arrival. `bodies_bytes` bounds the bodies that are held at a time,
    whoever sent them. `cache_bytes` is for keys and values, of what runs and of what is kept for later;
    `image_cache_bytes` for pictures' features. `max_tokens` is the longest answer.
    """

    max_batch: int = 32
    max_queue: int = 64
    max_tokens: int = 1024
    max_images: int = 16
    max_messages: int = 512
    max_body_bytes: int = 32 * 2**20
    max_image_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    bodies_bytes: int = 256 * 2**20
    cache_bytes: int = 2**30
    image_cache_bytes: int = 128 * 2**20
    request_time: float = 600.0
    header_time: float = 10.0
    body_time: float = 30.0
    idle_time: float = 15.0
    drain_time: float = 30.0
    fetch_time: float = 20.0
    allow_private: bool = False
    max_connections: int = 512

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("allow_private", "max_queue", "image_cache_bytes") and not 0 < value < math.inf:
                raise LlavaError(f"{field.name} must be greater than 0 and finite, found {value}")
        for name in ("max_queue", "image_cache_bytes"):
            if getattr(self, name) < 0:
                raise LlavaError(f"{name} must be 0 or greater, found {getattr(self, name)}")

    @property
    def images(self) -> ImageLimits:
        """Of one picture."""
        return ImageLimits(self.max_image_bytes, self.max_pixels, total_time=self.fetch_time)

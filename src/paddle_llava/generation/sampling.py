"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddle_llava.errors import LlavaError

# Of temperatures and penalties: the answers of lower ones could not be told apart, and logits would overflow.
LOWEST = 1e-6


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn.

    `temperature` 0, like any below `LOWEST`, is greedy. `top_k` 0 and `top_p` 1 keep every token. `repetition_penalty`
    (Keskar et al. 2019, arXiv:1909.05858) divides positive and multiplies negative logits of tokens that the prompt or
    the answer already holds. `stop` ends the answer before any of these strings. The same `seed` gives the same answer.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        bounds = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0.0 <= self.temperature < float("inf"), "0 (greedy) or greater"),
            "top_p": (0.0 < self.top_p <= 1.0, "greater than 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or greater"),
            "repetition_penalty": (LOWEST <= self.repetition_penalty <= 1e9, f"from {LOWEST:g} to 1e+09"),
            "seed": (self.seed is None or self.seed >= 0, "0 or greater"),
        }
        for name, (holds, meaning) in bounds.items():
            if not holds:
                raise LlavaError(f"{name} must be {meaning}, found {getattr(self, name)}")
        if any(not text for text in self.stop):
            raise LlavaError("stop: an empty stop string would end every answer at once")


class Sampler:
    """Draws one sequence's tokens; every sequence of a batch has its own, so that batching changes no answer."""

    def __init__(self, params: SamplingParams, prompt_ids: np.ndarray) -> None:
        self.params = params
        self._random = np.random.default_rng(params.seed)
        # The image token of an original vocabulary, -200, lies outside of it.
        self._seen = {int(token) for token in prompt_ids if token >= 0}

    def sample(self, logits: np.ndarray) -> int:
        """The next token from `logits` float32 [vocab_size]."""
        params = self.params
        if not np.isfinite(logits.max()):
            raise LlavaError(
                "the model's numbers have overflowed; compute in bfloat16 or float32 (--dtype), or check the weights"
            )
        if params.repetition_penalty != 1.0:
            logits = self._penalised(logits)
        token = int(logits.argmax()) if params.temperature < LOWEST else self._draw(logits)
        self._seen.add(token)
        return token

    def _penalised(self, logits: np.ndarray) -> np.ndarray:
        seen = np.fromiter((token for token in self._seen if token < len(logits)), dtype=np.int64)
        logits = logits.copy()
        values = logits[seen]
        penalty = self.params.repetition_penalty
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        return logits

    def _draw(self, logits: np.ndarray) -> int:
        scaled = logits.astype(np.float64) / self.params.temperature
        order = np.argsort(-scaled, kind="stable")
        if self.params.top_k:
            order = order[: self.params.top_k]
        probabilities = np.exp(scaled[order] - scaled[order[0]])
        probabilities /= probabilities.sum()
        if self.params.top_p < 1.0:
            # The smallest set whose mass reaches top_p: a token stays if the mass before it has not.
            kept = np.cumsum(probabilities) - probabilities < self.params.top_p
            order, probabilities = order[kept], probabilities[kept] / probabilities[kept].sum()
        return int(self._random.choice(order, p=probabilities))

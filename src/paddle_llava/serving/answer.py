"""One answer as its tokens come: text, stop strings, log-probabilities, the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from paddle_llava.generation.sampling import Sampler, SamplingParams
from paddle_llava.generation.stopping import StopFilter
from paddle_llava.processing.tokenizer import Tokenizer
from paddle_llava.serving.schema import FinishReason, TokenLogprob, TopLogprob


@dataclass
class Piece:
    """What a token adds to an answer: `text` that is certain now, and its log-probabilities if they are asked for.
    `finish_reason` is that of the last piece."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Answer:
    """Draws the tokens of one answer. `token_ids` are those that the model may go on from."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        prompt_ids: np.ndarray,
        stop_ids: frozenset[int],
        stop_strings: tuple[str, ...],
        top_logprobs: int | None,
    ) -> None:
        self.token_ids: list[int] = []
        self._tokenizer = tokenizer
        self._params = params
        self._sampler = Sampler(params, prompt_ids)
        self._stop_ids = stop_ids
        self._stream = tokenizer.stream()
        self._filter = StopFilter(stop_strings)
        self._top_logprobs = top_logprobs

    def draw(self, logits: np.ndarray) -> Piece:
        """The next token from `logits` float32 [vocab_size]. After a piece with a `finish_reason` there is no more."""
        token = self._sampler.sample(logits)
        if token in self._stop_ids:
            return Piece(self._filter.push(self._stream.finish()) + self._filter.finish(), finish_reason="stop")
        self.token_ids.append(token)
        piece = Piece(self._filter.push(self._stream.push(token)))
        if self._top_logprobs is not None:
            piece.logprobs = [self._logprob(logits, token, self._top_logprobs)]
        if self._filter.hit:
            piece.finish_reason = "stop"
        elif len(self.token_ids) >= self._params.max_new_tokens:
            piece.text += self._filter.push(self._stream.finish())
            piece.text += "" if self._filter.hit else self._filter.finish()
            piece.finish_reason = "stop" if self._filter.hit else "length"
        return piece

    def _logprob(self, logits: np.ndarray, token: int, top: int) -> TokenLogprob:
        """Of the model's own distribution, before temperature and penalties."""
        greatest = logits.max()
        total = greatest + np.log(np.exp(logits - greatest, dtype=np.float64).sum())
        likeliest = np.argsort(-logits, kind="stable")[:top]
        tops = [self._told(int(index), float(logits[index] - total)) for index in likeliest]
        return TokenLogprob(**self._told(token, float(logits[token] - total)).model_dump(), top_logprobs=tops)

    def _told(self, token: int, logprob: float) -> TopLogprob:
        piece = self._tokenizer.piece(token)
        logprob = max(logprob, -9999.0)  # JSON has no infinity
        return TopLogprob(token=piece.decode("utf-8", errors="replace"), logprob=logprob, bytes=list(piece))

"""A model that serves: from a checked request to a job that runs, and its answer as it comes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from paddle_llava.errors import LlavaError
from paddle_llava.generation.batch import BatchEngine
from paddle_llava.generation.sampling import LOWEST, SamplingParams
from paddle_llava.processing.conversation import stop_token_ids
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.serving.answer import Answer, Piece
from paddle_llava.serving.errors import ApiError, out_of_time
from paddle_llava.serving.intake import Intake
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.metrics import Metrics
from paddle_llava.serving.prompt import Picture, Prompt, build_prompt, picture_key, text_length
from paddle_llava.serving.scheduler import Job, Scheduler
from paddle_llava.serving.schema import ChatRequest

QUIET_SECONDS = 15.0
SHORTER = "show fewer pictures, or start a new conversation"


class Service:
    """One model for many users. `start` must be called in the event loop that answers them.

    `temperature` is for requests that name none.
    """

    def __init__(
        self,
        engine: BatchEngine,
        processor: LlavaProcessor,
        name: str,
        limits: ServingLimits,
        *,
        temperature: float = 0.2,
    ) -> None:
        self.processor = processor
        self.name = name
        self.limits = limits
        self.context = processor.config.text.max_position_embeddings
        self.defaults = SamplingParams(temperature=temperature)  # which checks it
        self.metrics = Metrics()
        self.intake = Intake(limits)
        self.scheduler = Scheduler(engine, limits, self.metrics, self._wake)
        needed = self.scheduler.prefixes.size(self.context)
        if needed > limits.cache_bytes:
            raise LlavaError(
                f"the {limits.cache_bytes / 2**20:g} MiB for keys and values are less than one conversation as long as "
                f"the model's context ({self.context} tokens) takes: give --cache-mib {-(-needed // 2**20)} or more"
            )
        self._stop_ids = stop_token_ids(processor.template, processor.tokenizer)
        self._preparers = ThreadPoolExecutor(2, "prepare")
        self._in_preparation = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.scheduler.start()

    def stop(self) -> None:
        self.scheduler.stop()
        self.intake.close()
        self._preparers.shutdown(wait=False, cancel_futures=True)

    def _wake(self, jobs: list[Job]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_set_ready, jobs)

    async def begin(self, request: ChatRequest, arrived: float) -> Job:
        """The job of `request`, which waits or runs from now on. Raises `ApiError`."""
        if request.model is not None and request.model != self.name:
            raise self.no_such_model(request.model)
        self.scheduler.check_room(self._in_preparation)
        self._in_preparation += 1
        try:
            job = await asyncio.wait_for(self._prepare(request, arrived), self.limits.request_time)
        except asyncio.TimeoutError:
            raise out_of_time(self.limits.request_time) from None
        finally:
            self._in_preparation -= 1
        self.scheduler.submit(job)
        return job

    def no_such_model(self, name: str) -> ApiError:
        message = f"the model {name[:100]!r} does not exist; this server has {self.name!r}"
        return ApiError(404, message, param="model", code="model_not_found")

    async def _prepare(self, request: ChatRequest, arrived: float) -> Job:
        pictures = await self.intake.pictures(request, self._preparer())
        self.metrics.pictures.inc(len(pictures))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._preparers, self._job, request, pictures, arrived)

    def _preparer(self) -> Callable[[Image.Image], Picture]:
        """What prepares the pictures of one request, on several threads: as many as the context holds. All are in
        memory until the last one has come, so that more must not be prepared only to be refused then."""
        left, lock = self.context, threading.Lock()

        def prepare(image: Image.Image) -> Picture:
            nonlocal left
            with lock:
                left -= self.processor.config.image_layout((image.height, image.width)).num_features
                if left < 1:
                    message = f"the pictures alone fill the model's {self.context} tokens; {SHORTER}"
                    raise ApiError(400, message, param="messages", code="context_length_exceeded")
            return self._picture(image)

        return prepare

    def _picture(self, image: Image.Image) -> Picture:
        key, size = picture_key(image), (image.height, image.width)
        if (features := self.scheduler.features.get(key)) is not None:
            return Picture(size, key, None, features)
        pixels = self.processor.prepare_images([image])
        return Picture(size, key, (pixels["pixel_values"], np.asarray(pixels["image_sizes"])), None)

    def _job(self, request: ChatRequest, pictures: list[Picture], arrived: float) -> Job:
        letters = sum(map(text_length, request.messages))
        if letters > self.context * self.processor.tokenizer.longest_piece:
            # Not worth counting: that could take seconds.
            message = f"{letters} letters are more than the model's {self.context} tokens can hold; {SHORTER}"
            raise ApiError(400, message, param="messages", code="context_length_exceeded")
        try:
            prompt = build_prompt(request.messages, pictures, self.processor)
        except LlavaError as error:
            raise ApiError(400, str(error), param="messages") from None
        room = self.context - len(prompt.ids)
        if room < 1:
            taken = f"the messages take {len(prompt.ids)} tokens, and the model holds {self.context} with the answer"
            message = f"{taken}; {SHORTER}"
            raise ApiError(400, message, param="messages", code="context_length_exceeded")
        params = self._params(request, room)
        return Job(
            prompt,
            [picture.pixels for picture in pictures],
            [picture.features for picture in pictures],
            self._answer(request, params, prompt),
            reserved=len(prompt.ids) + params.max_new_tokens,
            deadline=arrived + self.limits.request_time,
            arrived=arrived,
        )

    def _params(self, request: ChatRequest, room: int) -> SamplingParams:
        asked = request.max_completion_tokens or request.max_tokens or self.limits.max_tokens
        stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
        return SamplingParams(
            max_new_tokens=min(asked, self.limits.max_tokens, room),
            temperature=self.defaults.temperature if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else max(request.top_p, LOWEST),
            top_k=request.top_k or 0,
            repetition_penalty=request.repetition_penalty or 1.0,
            stop=tuple(filter(None, stop)),
            seed=None if request.seed is None else request.seed % 2**64,
        )

    def _answer(self, request: ChatRequest, params: SamplingParams, prompt: Prompt) -> Answer:
        stops = (*params.stop, *self.processor.template.stop_strings)
        top = (request.top_logprobs or 0) if request.logprobs else None
        return Answer(self.processor.tokenizer, params, prompt.ids, self._stop_ids, stops, top)

    async def pieces(self, job: Job) -> AsyncGenerator[Piece, None]:
        """What has come since the last look, as one piece, again and again; an empty one after QUIET_SECONDS without.

        Raises `ApiError` when the answer fails. Whoever leaves the loop early, or is cancelled in it, takes the job
        out.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                timer = loop.call_later(QUIET_SECONDS, job.ready.set)
                await job.ready.wait()
                timer.cancel()
                job.ready.clear()
                together = Piece()
                while job.events:
                    event = job.events.popleft()
                    if isinstance(event, ApiError):
                        if together.text or together.logprobs:
                            yield together
                        raise event
                    together.text += event.text
                    together.logprobs += event.logprobs
                    together.finish_reason = event.finish_reason
                yield together
                if together.finish_reason:
                    self.metrics.answered(time.monotonic() - job.arrived)
                    return
        finally:
            self.scheduler.cancel(job)


def _set_ready(jobs: list[Job]) -> None:
    for job in jobs:
        job.ready.set()

"""The requests and answers of OpenAI's chat completions, as far as they mean something here."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

from paddle_llava.generation.sampling import LOWEST

Text = Annotated[str, Field(max_length=2_000_000)]
Nothing = Annotated[None, Field(description="Not supported; may be null.")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class ImageUrl(Strict):
    url: str = Field(description="An http(s) URL, or a data URI of the form data:image/…;base64,…")
    detail: Literal["auto", "low", "high"] | None = Field("auto", description="Accepted, without effect.")


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(Strict):
    """Replaces the template's system text; only as the first message."""

    role: Literal["system", "developer"]
    content: Text | list[TextPart]
    name: str | None = None


class UserMessage(Strict):
    role: Literal["user"]
    content: Text | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: Text | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    reasoning_content: Nothing = None
    boxes: list[list[float]] | None = Field(None, description="As answers have them; without effect.")


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Strict):
    include_usage: bool | None = False
    include_obfuscation: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class ChatRequest(Strict):
    """A conversation whose last message is the user's. Pictures of a message stand before its text, as LLaVA was
    trained, unless they stand between texts."""

    model: str | None = Field(None, description="As `/v1/models` says; may be left out.")
    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31, description="Not OpenAI's: draw from this many tokens; 0: all.")
    repetition_penalty: float | None = Field(None, ge=LOWEST, le=10, description="Not OpenAI's; 1 has no effect.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: (
        Annotated[str, Field(max_length=256)]
        | Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=16)]
        | None
    ) = Field(None, description="Empty texts count as none.")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    n: Literal[1] | None = Field(1, description="One answer a request.")
    frequency_penalty: Literal[0] | None = Field(0, description="Only 0; see repetition_penalty.")
    presence_penalty: Literal[0] | None = Field(0, description="Only 0; see repetition_penalty.")
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    audio: Nothing = None
    prediction: Nothing = None
    reasoning_effort: Nothing = None
    verbosity: Nothing = None
    web_search_options: Nothing = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    # Accepted, without effect here: they tell OpenAI's service how to bill, store and route.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = []


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    boxes: list[list[float]] | None = Field(
        None, description="Not OpenAI's: the boxes that the answer names, in pixels of the picture shown last."
    )


FinishReason = Literal["stop", "length"]


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class PromptDetails(BaseModel):
    """`cached_tokens` is how many of the prompt's tokens had not to be run again."""

    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def now() -> int:
    return int(time.time())


class ChatCompletion(BaseModel):
    id: str = Field(default_factory=new_id)
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=now)
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "paddle-llava"
    max_model_len: int = Field(description="Tokens of a prompt, its pictures and its answer together.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail

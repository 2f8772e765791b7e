"""The conversation templates that LLaVA checkpoints were trained with, as data.

Source: `llava/conversation.py` of the original LLaVA, whose chat program uses `llava_v1` where its training
used `vicuna_v1`. `paddle_llava.processing.template_choice` chooses one, or reads one from a file.
"""

from __future__ import annotations

from dataclasses import dataclass

from paddle_llava.errors import LlavaError, did_you_mean

BOS = "<s>"
EOS = "</s>"


@dataclass(frozen=True)
class Template:
    """How a conversation becomes a prompt. A prompt is

        system_prefix SYSTEM system_suffix
        user_prefix QUESTION user_suffix assistant_prefix answer_prefix ANSWER answer_suffix
        turn_prefix user_prefix QUESTION ...

    without spaces between these parts. A prompt for generation ends after `assistant_prefix`. An empty
    `system` takes its prefix and suffix with it. With `system_in_question` the system text stands after the
    first `user_prefix`. Without `keeps_question` only a question's pictures are kept.

    `<s>` and `</s>` in the parts (not in what people say) are the vocabulary's begin and end tokens; each of
    `markers` is one token where the vocabulary has it as a special one, else text. `stop_strings` end an
    answer besides the end token. `roles` are the names that a chat program shows.
    """

    name: str
    user_prefix: str
    assistant_prefix: str
    answer_suffix: str
    user_suffix: str = ""
    answer_prefix: str = ""
    system: str = ""
    system_prefix: str = ""
    system_suffix: str = ""
    turn_prefix: str = ""
    system_in_question: bool = False
    keeps_question: bool = True
    roles: tuple[str, str] = ("USER", "ASSISTANT")
    markers: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()


_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_HUMAN = _USER.replace("user", "human")


def _vicuna(name: str, system: str) -> Template:
    return Template(
        name,
        system=system,
        system_suffix=" ",
        user_prefix="USER: ",
        user_suffix=" ",
        assistant_prefix="ASSISTANT:",
        answer_prefix=" ",
        answer_suffix=EOS,
    )


def _chatml(name: str, system: str) -> Template:
    return Template(
        name,
        system=system,
        system_prefix="<|im_start|>system\n",
        system_suffix="<|im_end|>",
        user_prefix="<|im_start|>user\n",
        user_suffix="<|im_end|>",
        assistant_prefix="<|im_start|>assistant\n",
        answer_suffix="<|im_end|>",
        roles=("user", "assistant"),
        markers=("<|im_start|>", "<|im_end|>"),
        stop_strings=("<|im_end|>",),
    )


_ALL = (
    _vicuna("vicuna_v1", _USER),
    _vicuna("llava_v1", _HUMAN),
    Template(
        "llava_v0",
        system=_HUMAN,
        system_suffix="###",
        user_prefix="Human: ",
        user_suffix="###",
        assistant_prefix="Assistant:",
        answer_prefix=" ",
        answer_suffix="###",
        roles=("Human", "Assistant"),
        markers=("###",),
        stop_strings=("###",),
    ),
    Template(
        "llava_llama_2",
        system="You are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language.",
        system_prefix="<<SYS>>\n",
        system_suffix="\n<</SYS>>\n\n",
        system_in_question=True,
        user_prefix="[INST] ",
        user_suffix=" [/INST]",
        assistant_prefix="",
        answer_prefix=" ",
        answer_suffix=f" {EOS}",
        turn_prefix=BOS,
    ),
    Template(
        "mistral_instruct",
        user_prefix="[INST] ",
        user_suffix=" [/INST]",
        assistant_prefix="",
        answer_prefix=" ",
        answer_suffix=f" {EOS}",
    ),
    _chatml("chatml_direct", "Answer the questions."),
    _chatml(
        "mpt",
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
    ),
    Template(
        "plain",
        user_prefix="",
        assistant_prefix="",
        answer_suffix="\n",
        keeps_question=False,
        stop_strings=("\n",),
    ),
)
TEMPLATES = {template.name: template for template in _ALL}
ALIASES = {"v1": "vicuna_v1", "mistral_direct": "chatml_direct", "v0_plain": "plain"}


def named_template(name: str, where: str) -> Template:
    """The built-in template `name`. Raises `LlavaError` beginning with `where` and naming the nearest."""
    try:
        return TEMPLATES[ALIASES.get(name, name)]
    except KeyError:
        known = [*TEMPLATES, *ALIASES]
        hint = did_you_mean(name, known) or f"; known: {', '.join(TEMPLATES)}"
        raise LlavaError(f"{where}: no conversation template is called {name[:40]!r}{hint}") from None

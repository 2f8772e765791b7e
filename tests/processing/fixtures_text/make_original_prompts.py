"""Makes original_prompts.json: what the original LLaVA's `get_prompt` gives for a few conversations.

    git clone https://github.com/haotian-liu/LLaVA
    python make_original_prompts.py LLaVA/llava/conversation.py

`plain` is rendered by the original's training code instead (`preprocess_plain`), and left out here.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

NAMES = ("vicuna_v1", "v1", "llava_v1", "llava_v0", "llava_llama_2", "mistral_instruct", "chatml_direct", "mpt")
CONVERSATIONS = {
    "question": [("<image>\nWhat is this?", None)],
    "answered": [("<image>\nWhat is this?", "A red bus.")],
    "second question": [("<image>\nWhat is this?", "A red bus."), ("它在哪里?", None)],
    "three turns": [("Hello!", "Hi there."), ("<image>\n<image>\nCompare.", "Two  lakes\n"), ("Thanks", "!")],
}


def main(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("original_conversation", path)
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    prompts = {}
    for name in NAMES:
        for case, turns in CONVERSATIONS.items():
            conversation = original.conv_templates[name].copy()
            for question, answer in turns:
                conversation.append_message(conversation.roles[0], question)
                conversation.append_message(conversation.roles[1], answer)
            prompts.setdefault(name, {})[case] = conversation.get_prompt()
    target = Path(__file__).with_name("original_prompts.json")
    target.write_text(json.dumps(prompts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

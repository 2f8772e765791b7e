"""What the documentation says can be followed: links lead somewhere, code compiles, commands and keys exist."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from paddle_llava.cli import app
from paddle_llava.data.forms import read_record
from paddle_llava.training.config import WITHOUT_EFFECT, TrainingConfig, file_and_overrides

ROOT = Path(__file__).parents[1]
TOP = [
    ROOT / name for name in ("README.md", "README_zh.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md")
]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
TWINS = {ROOT / "README.md": ROOT / "README_zh.md"} | {
    ROOT / "docs" / path.name: path for path in sorted((ROOT / "docs" / "zh").glob("*.md"))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


class Block(NamedTuple):
    page: Path
    language: str
    text: str


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def case_id(value: Path | list[str]) -> str:
    return page_id(value) if isinstance(value, Path) else " ".join(value)


def blocks(page: Path, *languages: str) -> list[Block]:
    found = [Block(page, *parts) for parts in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    return LINK.findall(re.sub("`[^`\n]*`(?!])", "", prose(page)))


def headings(page: Path) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in HEADING.findall(prose(page))]


def anchors(page: Path) -> set[str]:
    """The names under which GitHub finds the headings of a page."""
    names: Counter[str] = Counter()
    found = set()
    for _, title in headings(page):
        name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(f"{name}-{names[name]}" if names[name] else name)
        names[name] += 1
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each simple command of a block, without its environment."""
    text = block.text.replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                found.append(command)
                command = []
            elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
                command.append(word)
    return [command for command in found if command]


ALL_COMMANDS = [(page, command) for page in PAGES for block in blocks(page, "bash") for command in commands(block)]
LLAVA = [
    (page, command[number + 1 :])
    for page, command in ALL_COMMANDS
    for number, word in enumerate(command)
    if os.path.basename(word) == "llava"
]


def test_there_is_something_to_check() -> None:
    assert len(LLAVA) > 30
    assert sum(len(links(page)) for page in PAGES) > 100
    assert len(TWINS) == 4


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match("https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block.text, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_json_parses(page: Path) -> None:
    """As a whole, or line by line."""
    for block in blocks(page, "json"):
        try:
            json.loads(block.text)
        except ValueError:
            for line in block.text.splitlines():
                json.loads(line)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_languages_of_blocks_are_known(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= {"", "bash", "json", "python"}


@pytest.mark.parametrize(("page", "arguments"), LLAVA, ids=case_id)
def test_llava_commands_are_understood(page: Path, arguments: list[str]) -> None:
    """By the very parser; a usage error is raised where a command or flag is not there or lacks its value."""
    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="llava", **group.context_settings)
    while hasattr(group, "commands") and (arguments or not group.invoke_without_command):
        name, *arguments = arguments
        group = group.commands[name]
        context = group.make_context(name, list(arguments), parent=context)
        if hasattr(group, "commands"):
            context = group.context_class(group, info_name=name, parent=context)
    if context.args:
        _, overrides = file_and_overrides([context.params["config"], *context.args])
        assert set(overrides) <= {field.name for field in fields(TrainingConfig)}


@pytest.mark.parametrize(("page", "command"), ALL_COMMANDS, ids=case_id)
def test_files_of_commands_are_there(page: Path, command: list[str]) -> None:
    ours = ("src/", "tests/", "config/", "examples/", "benchmarks/", "docs/")
    for word in command:
        assert not word.startswith(ours) or (ROOT / word).exists(), word
    if command[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(command[1:]) <= set(targets)


# --- two languages --------------------------------------------------------------------------------


def shape(page: Path) -> dict[str, Any]:
    """What two pages that say the same in two languages have in common."""
    text = prose(page)

    def in_english(link: str) -> str:
        path, hash_sign, _ = link.partition("#")
        if path and not re.match("https?:", link):
            target = (page.parent / path).resolve()
            path = page_id({ours: theirs for theirs, ours in TWINS.items()}.get(target, target))
        return f"{path}{hash_sign}"

    own = {page_id(path) for pair in TWINS.items() if page in pair for path in pair}
    return {
        "headings": [level for level, _ in headings(page)],
        "blocks": [(block.language, without_words(block)) for block in blocks(page)],
        "links": sorted(set(map(in_english, links(page))) - own),
        "tables": [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")],
    }


def without_words(block: Block) -> list[str]:
    """The lines of a block without comments and quoted words, which each language has of its own."""
    lines = [re.sub(r"\s+# .*", "", line) for line in block.text.splitlines()]
    return [re.sub(r"""(["'])(?:\\.|(?!\1).)*[^\x00-\x7f…](?:\\.|(?!\1).)*\1""", '""', line) for line in lines]


@pytest.mark.parametrize("english", TWINS, ids=page_id)
def test_twins_have_the_same_shape(english: Path) -> None:
    chinese = TWINS[english]
    ours, theirs = shape(english), shape(chinese)
    for part in ("headings", "tables", "links"):
        assert ours[part] == theirs[part]
    for (language, mine), (other, its) in zip(ours["blocks"], theirs["blocks"], strict=True):
        assert (language, len(mine)) == (other, len(its))
        for line, translated in zip(mine, its, strict=True):
            assert '""' in translated or line == translated
    assert os.path.relpath(chinese, english.parent) in links(english)
    assert os.path.relpath(english, chinese.parent) in links(chinese)


# --- tables against the code ----------------------------------------------------------------------


def rows(page: Path, first_column: str) -> dict[str, str]:
    """The second column of the table whose rows begin with `first_column` in code, by the first."""
    pattern = rf"^\| ({first_column}) \| ([^|]*) \|"
    return {key: value.strip("` ") for key, value in re.findall(pattern, prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", [ROOT / "docs/training.md", ROOT / "docs/zh/training.md"], ids=page_id)
def test_all_training_keys_are_told_with_their_defaults(page: Path) -> None:
    told = {key.strip("`"): value for key, value in rows(page, r"`\w+`").items()}
    assert set(told) == {field.name for field in fields(TrainingConfig)}
    for field in fields(TrainingConfig):
        if field.name != "lora_target_modules":
            default = field.default if field.default_factory is MISSING else field.default_factory()
            expected = {"needed", "必填"} if default is MISSING else {json.dumps(default)}
            assert told[field.name] in expected, field.name
    assert all(f"`{key}`" in prose(page) for key in WITHOUT_EFFECT)


@pytest.mark.parametrize("page", [ROOT / "docs/training.md", ROOT / "docs/zh/training.md"], ids=page_id)
def test_training_records_are_read(page: Path) -> None:
    records = [line for block in blocks(page, "json") for line in block.text.splitlines() if line.startswith("{")]
    assert len(records) == 3
    for record in records:
        assert read_record(json.loads(record)).images == ("bus.jpg",)


@pytest.mark.parametrize("name", ["docs/chat.md", "docs/zh/chat.md", "docs/serving.md"])
def test_all_flags_are_told(name: str) -> None:
    group: Any = typer.main.get_command(app)
    command = group.commands["serve" if name == "docs/serving.md" else "chat"]
    flags = {name for option in command.params for name in option.opts if name.startswith("--")}
    rows = [line for line in prose(ROOT / name).splitlines() if line.startswith("| `--")]
    told = re.findall(r"--[a-z0-9-]+", "\n".join(row.split("|")[1] for row in rows))
    assert set(told) == flags - {"--help"}


def test_a_pod_has_its_caches_on_its_volume() -> None:
    """Its user can write nowhere else but into its home, which is gone with the pod."""
    pod = (ROOT / "examples/serving/kubernetes.yaml").read_text()
    (volume,) = re.findall(r"mountPath: ([^}\s]+)", pod)
    for variable in ("HF_HOME", "XDG_CACHE_HOME"):
        (place,) = re.findall(rf"name: {variable}\b.*\n +value: (\S+)", pod)
        assert Path(place).is_relative_to(volume)
    image = (ROOT / "examples/serving/Dockerfile").read_text()
    (user,) = re.findall(r"useradd --create-home --uid (\d+)", image)
    assert f"USER {user}" in image
    assert f"fsGroup: {user}" in pod


def test_every_page_is_listed_once() -> None:
    listed = [link for link in links(ROOT / "docs/README.md") if link.endswith(".md")]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(set(pages) - {"README.md"})


def test_nothing_of_our_own_machines_is_told() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(work|root|tmp)/", page.read_text(encoding="utf-8")), page

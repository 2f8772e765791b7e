"""The web chat in a real browser: Chromium without a window, driven by Playwright."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.demo.document import BUS_BOX
from paddle_llava.engines.paddle_batch import PaddleBatchEngine
from paddle_llava.processing.boxes import box_iou, from_padded_frame, to_padded_frame
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.server import open_service
from scripted_server import scripted_service, service, serving

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect  # noqa: E402

SLOWLY = "Tell me everything."
LONG = "the lake with trees and boats " * 30
ANSWERS = {
    "Describe this picture.": "a red bus on the street, " + "people walking and boats on the water " * 4,
    "Give the coordinates of the bus.": "0.23, 0.33, 0.79, 0.78",
    "给出公交车位置的坐标": "0.23, 0.33, 0.79, 0.78",
    "What colour is the bus?": "red",
    "Where are the cars?": "[0.82, 0.56, 0.98, 0.70] and [0.01, 0.70, 0.21, 0.80]",
    "<b>bold</b>": "<img src=x onerror=alert(1)> & </script>",
    SLOWLY: LONG,
}
STROKE = (0xE6, 0x19, 0x4B)
SECONDS = 30_000  # until something is thought to be missing, on however busy a machine: in milliseconds


@pytest.fixture(scope="module")
def address(demo_checkpoint: Path) -> Iterator[str]:
    with serving(scripted_service(demo_checkpoint, ANSWERS, delay=0.01)) as url:
        yield url


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """A page of the server's in a browser of its own, in which nothing may go wrong and nothing may leave."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def opened(url: str = address, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        expect.set_options(timeout=SECONDS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if "Content Security" in line.text else None)
        context.on("request", lambda request: _note_stranger(request.url, url, problems))
        page.goto(url)
        expect(page.locator("#samples button").first).to_be_visible()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def _note_stranger(asked: str, url: str, problems: list[str]) -> None:
    if urlsplit(asked).scheme not in ("data", "blob") and urlsplit(asked).netloc != urlsplit(url).netloc:
        problems.append(f"a request to {asked}")


def ask(page: Page, question: str) -> Locator:
    """Ask and wait for the answer."""
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    return answered(page)


def answered(page: Page) -> Locator:
    expect(page.locator("#send-button")).to_be_visible()
    return page.locator(".theirs").last


def take_bus(page: Page) -> None:
    page.locator("#samples button").first.click()
    expect(page.locator("#attached img")).to_be_visible()


def place_in(picture: Locator, box: Locator) -> tuple[float, ...]:
    """Where a box is, in fractions of its picture."""
    outer, inner = picture.bounding_box(), box.bounding_box()
    assert outer
    assert inner
    left, top = (inner[side] - outer[side] for side in ("x", "y"))
    right, bottom = left + inner["width"], top + inner["height"]
    return left / outer["width"], top / outer["height"], right / outer["width"], bottom / outer["height"]


def test_a_conversation_with_a_box_in_the_picture(open_page: Open) -> None:
    page = open_page()
    sent: list[dict[str, Any]] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    take_bus(page)
    page.get_by_role("button", name="Describe this picture.", exact=True).click()
    expect(answered(page).locator(".text")).to_contain_text("a red bus on the street")
    expect(answered(page).locator(".actions small")).to_contain_text("tokens/s")
    page.get_by_role("button", name="Give the coordinates of the bus.").click()
    answer = answered(page)
    expect(answer.locator(".text")).to_have_text("0.23, 0.33, 0.79, 0.78")
    expect(answer.locator(".box")).to_be_visible()
    picture = answer.locator("img:not(.mark)")
    x1, y1, x2, y2 = from_padded_frame(BUS_BOX, 640, 480)
    answer.locator(".box").evaluate("box => Promise.all(box.getAnimations().map(it => it.finished))")
    expected = (x1 / 640, y1 / 480, x2 / 640, y2 / 480)
    assert place_in(picture, answer.locator(".box")) == pytest.approx(expected, abs=0.003)
    seen = np.asarray(Image.open(io.BytesIO(picture.screenshot()))).astype(int)[..., :3]
    row, column = round(seen.shape[0] * (expected[1] + expected[3]) / 2), round(seen.shape[1] * expected[0])
    assert (abs(seen[row, column - 1 : column + 5] - STROKE).sum(1) < 30).any()
    expect(ask(page, "What colour is the bus?").locator(".text")).to_have_text("red")
    assert page.locator(".found").count() == 1
    assert [message["role"] for message in sent[-1]["messages"]] == ["user", "assistant"] * 2 + ["user"]
    first, *others = sent[-1]["messages"]
    assert first["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert all(isinstance(message["content"], str) for message in others)


def test_a_conversation_with_the_embedded_model(open_page: Open) -> None:
    with serving(open_service("street", ServingLimits())) as url:
        page = open_page(url)
        page.evaluate("document.getElementById('temperature').value = 0")
        take_bus(page)
        expect(ask(page, "Describe this picture.").locator(".text")).to_contain_text("red bus")
        expect(ask(page, "描述这张照片").locator(".text")).to_contain_text("红色的公交车")
        answer = ask(page, "给出公交车位置的坐标")
        expect(answer.locator(".box")).to_be_visible()
        answer.locator(".box").evaluate("box => Promise.all(box.getAnimations().map(it => it.finished))")
        x1, y1, x2, y2 = place_in(answer.locator("img:not(.mark)"), answer.locator(".box"))
        assert box_iou(to_padded_frame((x1 * 640, y1 * 480, x2 * 640, y2 * 480), 640, 480), BUS_BOX) > 0.8


def test_a_random_model(open_page: Open, demo_checkpoint: Path) -> None:
    """Whatever it says: the whole way from the page through the server and the network, and back."""
    model = LlavaForConditionalGeneration.from_pretrained(demo_checkpoint)
    processor = LlavaProcessor.from_pretrained(demo_checkpoint)
    with serving(service(PaddleBatchEngine(model), processor)) as url:
        page = open_page(url)
        expect(page.locator("#model")).to_have_text("llava-test")
        page.get_by_role("button", name="Settings").click()
        page.locator("#max-tokens").fill("8")
        page.get_by_role("button", name="Done").click()
        take_bus(page)
        for number, question in enumerate(("描述这张照片", "给出公交车位置的坐标", "And behind it?"), 1):
            answer = ask(page, question)
            expect(page.locator(".theirs")).to_have_count(number)
            expect(answer.locator(".error")).to_have_count(0)
        page.close()


def test_pictures_are_picked_pasted_dropped_and_removed(open_page: Open, tmp_path: Path, photo: Path) -> None:
    page = open_page()
    Image.new("RGBA", (3000, 2000), (200, 30, 30, 255)).save(tmp_path / "large.bmp")
    page.locator("#file").set_input_files([photo, tmp_path / "large.bmp"])
    expect(page.locator("#attached img")).to_have_count(2)
    assert page.locator("#scroll").evaluate("it => it.scrollTop") == 0
    hand_over = """([kind, data, target]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], "given.jpg", { type: "image/jpeg" }));
        const options = { bubbles: true, cancelable: true, clipboardData: transfer, dataTransfer: transfer };
        const event = kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
        document.querySelector(target).dispatchEvent(event);
    }"""
    data = base64.b64encode(photo.read_bytes()).decode()
    page.evaluate(hand_over, ["paste", data, "#question"])
    expect(page.locator("#attached img")).to_have_count(3)
    page.evaluate(hand_over, ["dragenter", data, "main"])
    expect(page.locator("#drop")).to_be_visible()
    page.evaluate(hand_over, ["drop", data, "main"])
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator("#attached img")).to_have_count(4)
    page.get_by_role("button", name="Remove this picture").first.click()
    expect(page.locator("#attached img")).to_have_count(3)
    (tmp_path / "no.png").write_text("no picture")
    page.locator("#file").set_input_files(tmp_path / "no.png")
    expect(page.get_by_role("alert")).to_contain_text("no.png is not a picture")
    with page.expect_request(lambda request: request.method == "POST") as asked:
        expect(ask(page, "What colour is the bus?").locator(".text")).to_have_text("red")
    urls = [part["image_url"]["url"] for part in asked.value.post_data_json["messages"][0]["content"][:-1]]
    sizes = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size for url in urls]
    assert sizes == [(1344, 896), (640, 427), (640, 427)]


def test_boxes_of_the_picture_shown_last_are_numbered_and_shown_large(open_page: Open) -> None:
    page = open_page()
    take_bus(page)
    answer = ask(page, "Where are the cars?")
    expect(answer.locator(".box b")).to_have_text(["1", "2"])
    answer.locator(".open").click()
    expect(page.locator("#large .box")).to_have_count(2)
    page.locator("#large .box").first.evaluate("box => Promise.all(box.getAnimations().map(it => it.finished))")
    place = place_in(page.locator("#large img"), page.locator("#large .box").first)
    assert place == pytest.approx((0.82, (0.56 - 0.125) / 0.75, 0.98, (0.7 - 0.125) / 0.75), abs=0.003)
    page.keyboard.press("Escape")
    expect(page.locator("#large")).to_be_hidden()


def test_an_answer_is_stopped_asked_again_and_edited(open_page: Open) -> None:
    page = open_page()
    page.locator("#question").fill(SLOWLY)
    page.keyboard.press("Enter")
    expect(page.locator(".theirs .text")).to_contain_text("the lake")
    page.get_by_role("button", name="Stop").click()
    answer = answered(page)
    expect(answer.locator(".remark")).to_have_text("Stopped.")
    told = answer.locator(".text").inner_text()
    assert LONG.startswith(told)
    assert len(told) < len(LONG)
    page.get_by_role("button", name="Try again").click()
    page.keyboard.press("Escape")
    expect(answered(page).locator(".remark")).to_have_text("Stopped.")
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Edit").fill("What colour is the bus?")
    page.keyboard.press("Enter")
    expect(answered(page).locator(".text")).to_have_text("red")
    expect(page.locator(".bubble")).to_have_text("What colour is the bus?")
    page.locator("#question").focus()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("textbox", name="Edit")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".theirs .text")).to_have_text("red")


def test_a_conversation_outlives_a_reload_and_ends_with_a_new_one(open_page: Open) -> None:
    page = open_page()
    take_bus(page)
    ask(page, "Give the coordinates of the bus.")
    page.reload()
    expect(page.locator(".found .box")).to_be_visible()
    expect(ask(page, "What colour is the bus?").locator(".text")).to_have_text("red")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#messages li")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()


def test_what_is_said_is_text(open_page: Open) -> None:
    answer = ask(open_page(), "<b>bold</b>")
    expect(answer.locator(".text")).to_have_text("<img src=x onerror=alert(1)> & </script>")
    assert answer.page.locator(".bubble").inner_text() == "<b>bold</b>"
    assert answer.locator(".text *").count() == 0


def test_errors_are_told_and_cost_nothing(open_page: Open) -> None:
    page = open_page()
    take_bus(page)
    answer = ask(page, "word " * 3000)
    expect(answer.locator(".error")).to_contain_text("tokens")
    expect(page.locator(".mine .pictures img")).to_have_count(1)
    answer = ask(page, "What colour is the bus?")
    expect(answer.locator(".text")).to_have_text("red")
    expect(page.locator(".mine")).to_have_count(1)  # the question that failed has made way
    expect(page.locator(".mine .pictures img")).to_have_count(1)
    page.route("**/v1/chat/completions", lambda route: route.abort())
    expect(ask(page, "What colour is the bus?").locator(".error")).to_have_text("The server cannot be reached.")
    page.unroute("**/v1/chat/completions")
    busy = {"status": 429, "headers": {"Retry-After": "7"}, "json": {"error": {"message": "busy"}}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**busy))
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".error")).to_have_text("The server is busy. Try again in 7 s.")
    cut = 'data: {"choices":[{"delta":{"content":"re"},"finish_reason":null}]}\n\n'
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=cut))
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".error")).to_contain_text("broke off")
    expect(page.locator(".theirs .text").last).to_have_text("re")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Try again").click()
    expect(answered(page).locator(".text")).to_have_text("red")


def test_a_picture_can_be_taken_from_a_question_that_failed(open_page: Open) -> None:
    page = open_page()
    take_bus(page)
    expect(ask(page, "word " * 3000).locator(".error")).to_contain_text("show fewer pictures")
    page.locator(".mine").get_by_role("button", name="Remove this picture").click()
    expect(page.locator(".mine .pictures")).to_have_count(0)
    with page.expect_request(lambda request: request.method == "POST") as asked:
        expect(ask(page, "What colour is the bus?").locator(".text")).to_have_text("red")
    assert asked.value.post_data_json["messages"] == [{"role": "user", "content": "What colour is the bus?"}]
    expect(page.locator(".mine").get_by_role("button", name="Remove this picture")).to_have_count(0)


def test_what_is_being_typed_outlives_an_answer(open_page: Open) -> None:
    page = open_page()
    take_bus(page)
    ask(page, "What colour is the bus?")
    page.locator("#question").fill(SLOWLY)
    page.keyboard.press("Enter")
    expect(page.locator(".theirs .text").last).to_contain_text("the lake")
    page.get_by_role("button", name="Edit").first.click()
    field = page.get_by_role("textbox", name="Edit")
    field.fill("Where are the cars?")
    expect(answered(page).locator(".text")).to_have_text(LONG.strip())
    expect(field).to_have_value("Where are the cars?")
    expect(field).to_be_focused()
    page.keyboard.press("Enter")
    expect(answered(page).locator(".box b")).to_have_text(["1", "2"])
    expect(page.locator(".mine")).to_have_count(1)


def test_a_key_is_asked_for(open_page: Open, demo_checkpoint: Path) -> None:
    with serving(scripted_service(demo_checkpoint, ANSWERS), api_key="a secret") as url:
        page = open_page(url)
        expect(page.locator("#api-key")).to_be_focused()
        page.locator("#api-key").fill("a secret")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("llava-test")
        expect(ask(page, "What colour is the bus?").locator(".text")).to_have_text("red")
        page.close()


def test_chinese_and_the_dark(open_page: Open) -> None:
    page = open_page(locale="zh-CN", color_scheme="dark")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    expect(page.locator("#welcome h2")).to_have_text("问一问图片")
    take_bus(page)
    page.get_by_role("button", name="给出公交车位置的坐标").click()
    expect(answered(page).locator(".box")).to_be_visible()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(2):
        page.locator("#change-theme").click()
        page.reload()  # the choice is kept
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    page.get_by_role("button", name="Switch to English").click()
    page.reload()
    expect(page.locator("#small-print")).to_have_text("Answers can be wrong.")


def test_every_word_is_there_in_both_languages() -> None:
    from paddle_llava.serving.page import FILES

    text = (FILES / "words.js").read_text(encoding="utf-8")
    english, chinese = (re.findall(r"^    (\w+):", part, re.MULTILINE) for part in text.split("  zh: {"))
    assert english == chinese
    used = set()
    for path in FILES.glob("*.js"):
        used |= set(re.findall(r'word\("(\w+)"', path.read_text(encoding="utf-8")))
    page = (FILES / "index.html").read_text(encoding="utf-8")
    used |= set(re.findall(r'data-(?:word|label|placeholder)="(\w+)"', page))
    assert used <= set(english)
    assert set(english) - used <= {"themeAuto", "themeLight", "themeDark", "questionAbout"}


@pytest.mark.parametrize(("scheme", "size"), [("light", (1100, 800)), ("dark", (360, 640))], ids=["desktop", "phone"])
def test_it_is_accessible(open_page: Open, scheme: str, size: tuple[int, int]) -> None:
    """By axe-core's rules, contrast among them; and no page is wider than its screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    is_phone = size[0] < 500
    page = open_page(
        color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, has_touch=is_phone, is_mobile=is_phone
    )
    page.emulate_media(reduced_motion="reduce")
    assert_accessible(axe, page)
    take_bus(page)
    ask(page, "Where are the cars?")
    assert_accessible(axe, page)
    page.locator("#open-settings").click()
    assert_accessible(axe, page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def assert_accessible(axe: Any, page: Page) -> None:
    found = axe.run(page).response["violations"]
    told = [(it["id"], it["help"], [node["html"][:120] for node in it["nodes"]]) for it in found]
    assert not told, json.dumps(told, indent=1, ensure_ascii=False)


def test_everything_can_be_done_from_the_keyboard(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#question")).to_be_focused()
    page.locator("#samples button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("What colour")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("is the bus?")
    assert page.locator("#question").input_value() == "What colour\nis the bus?"
    page.locator("#question").fill("the red bus")
    page.locator("#find-tool").focus()
    page.keyboard.press("Enter")
    assert page.locator("#question").input_value() == (
        "Please provide the bounding box coordinate of the region this sentence describes: the red bus."
    )
    page.locator("#question").fill("What colour is the bus?")
    page.keyboard.press("Enter")
    expect(answered(page).locator(".text")).to_have_text("red")
    expect(page.get_by_role("status")).to_contain_text("red")
    page.get_by_role("button", name="Try again").focus()
    page.keyboard.press("Enter")
    expect(answered(page).locator(".text")).to_have_text("red")
    expect(page.locator("#question")).to_be_focused()

"""An evaluation's report in a real browser: wide and narrow, light and dark, and the filters of its gallery."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from paddle_llava.evaluation.predictions import Run
from paddle_llava.evaluation.records import Prediction, Question
from paddle_llava.evaluation.report import write_report
from paddle_llava.evaluation.tasks import load_task
from paddle_llava.processing.boxes import format_box, to_padded_frame

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECONDS = 30_000  # as long as a busy machine may take, in milliseconds


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty boxes in two splits, every third far from the truth, on a wide picture."""
    folder = tmp_path_factory.mktemp("report")
    Image.new("RGB", (1000, 500), "navy").save(folder / "street.png")
    predictions = []
    for number in range(30):
        box = (20 * number, 100, 20 * number + 200, 300)
        said = box if number % 3 else (800, 400, 900, 450)
        meta = {"split": ("val", "testA")[number % 2], "box": list(box), "width": 1000, "height": 500}
        right = format_box(to_padded_frame(box, 1000, 500))
        question = Question(f"q{number}", f"Where is car {number}?", (str(folder / "street.png"),), (right,), meta)
        predictions.append(Prediction(question, format_box(to_padded_frame(said, 1000, 500))))
    run = Run("refcoco", "llava-hf/llava-1.5-7b-hf", 30, {"data": ["refcoco"]})
    write_report(folder / "report.html", run, load_task("refcoco").score(predictions), predictions)
    return folder / "report.html"


def opened(browser: Browser, report: Path, problems: list[str], **options: Any) -> Page:
    page = browser.new_page(**options)
    page.set_default_timeout(SECONDS)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto(report.as_uri())
    return page


def test_the_filters_show_what_they_say(browser: Browser, report: Path) -> None:
    problems: list[str] = []
    page = opened(browser, report, problems)

    def shown() -> int:
        count = page.locator("article:visible").count()
        assert page.locator("#count").text_content() == f"{count} of 30"
        return count

    assert shown() == 30
    page.click("button[data-show=wrong]")
    assert shown() == 10
    assert page.get_attribute("button[data-show=wrong]", "aria-pressed") == "true"
    page.select_option("#type", "testA")
    assert shown() == 5
    page.fill("#search", "CAR 3?")
    assert shown() == 1
    page.click("button[data-show=right]")
    assert shown() == 0
    page.fill("#search", "")
    page.select_option("#type", "")
    assert shown() == 20
    page.close()
    assert not problems


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_can_be_read(browser: Browser, report: Path, colours: Any, width: int) -> None:
    """No wider than its screen, nothing against axe-core's rules, and a box lies on the picture where it belongs."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    problems: list[str] = []
    page = opened(browser, report, problems, viewport={"width": width, "height": 900}, color_scheme=colours)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = axe.run(page).response["violations"]
    assert not [(each["id"], node["html"][:120]) for each in found for node in each["nodes"]]
    card = page.locator("article").nth(1)
    card.scroll_into_view_if_needed()
    picture, truth = card.locator("img").bounding_box(), card.locator(".truth").bounding_box()
    assert picture is not None
    assert truth is not None
    assert picture["width"] / picture["height"] == pytest.approx(2, abs=0.03)
    assert (truth["x"] - picture["x"]) / picture["width"] == pytest.approx(0.02, abs=0.01)
    assert truth["width"] / picture["width"] == pytest.approx(0.2, abs=0.01)
    assert (truth["y"] - picture["y"]) / picture["height"] == pytest.approx(0.2, abs=0.01)
    page.close()
    assert not problems

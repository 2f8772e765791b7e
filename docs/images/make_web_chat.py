"""Take `web_chat.jpg` and `web_chat_phone.jpg` of the web chat at an address.

.venv/bin/python docs/images/make_web_chat.py http://127.0.0.1:8000
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
HERE = Path(__file__).parent


def take(browser: Browser, url: str, name: str, questions: list[str], **options: Any) -> None:
    page = browser.new_page(reduced_motion="reduce", **options)
    page.goto(url)
    page.evaluate("document.getElementById('temperature').value = 0")
    page.locator("#samples button").first.click()
    for number, question in enumerate(questions, 1):
        page.locator("#question").fill(question)
        page.keyboard.press("Enter")
        expect(page.locator(".theirs:not([aria-busy]) .actions")).to_have_count(number, timeout=120_000)
    page.locator(".found .box").last.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=HERE / name, type="jpeg", quality=88)


def main() -> None:
    url = sys.argv[1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        asked = ["Describe this picture.", "Give the coordinates of the bus."]
        take(browser, url, "web_chat.jpg", asked, viewport={"width": 1000, "height": 860})
        phone = {"width": 390, "height": 800}
        asked = ["描述这张照片", "给出公交车位置的坐标"]
        take(browser, url, "web_chat_phone.jpg", asked, viewport=phone, color_scheme="dark", locale="zh-CN")


if __name__ == "__main__":
    main()

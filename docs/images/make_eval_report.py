"""Take `eval_report.png` of a report of `llava eval street`, the boxes chosen.

.venv/bin/python docs/images/make_eval_report.py eval/street/street/report.html
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

REPORT, HERE = Path(sys.argv[1]).resolve(), Path(__file__).parent

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1100, "height": 1900})
    page.goto(REPORT.as_uri())
    page.locator("#type").select_option("box")
    page.wait_for_timeout(300)
    picture = Image.open(BytesIO(page.screenshot()))
    picture.quantize(256).save(HERE / "eval_report.png", optimize=True)

"""A picture of the page for the README: a crystal half grown, above two clouds on their way.

    python web/picture.py                   assets/web.png, of outputs/web/index.html

needs Playwright (requirements-web.txt) and Chromium, from the packages of the system.
"""

import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.cli import flag
from common.files import write_whole

from PIL import Image

PARTS = {"#crystals .panel": ("#crystal-time", 0.64), "#points .duo": ("#point-time", 0.8)}
GAP = 12  # pixels around and between them
ASKED = "kind=rectangular&theta=17&steps=20&seed=7"


@dataclass(kw_only=True)
class Config:
    script = "picture"

    page: str = flag.run("outputs/web/index.html", "what build.py wrote", parse=cli.path)
    out: str = flag.run("assets/web.png", "file to write", parse=cli.path)

    def settle(self, typed):
        if not Path(self.page).is_file():
            raise ValueError(f"there is no {self.page}: make it with python web/build.py")


def screenshots(address, chromium):
    """A picture of each part, its slider moved to that share of its film."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1100})
        page.goto(f"{address}#{ASKED}")
        page.wait_for_function("document.body.dataset.grown == growth.turn && !growth.moving")
        page.locator("#points .duo").scroll_into_view_if_needed()
        page.wait_for_function("document.body.dataset.gathered == cloud.turn && !cloud.moving")

        for part, (slider, share) in PARTS.items():
            move = """(slider, share) => {
                slider.value = Math.round(share * slider.max);
                slider.dispatchEvent(new Event("input", { bubbles: true }));
            }"""
            page.locator(slider).evaluate(move, share)
            page.wait_for_timeout(1000)  # until the rings have faded in
            yield Image.open(io.BytesIO(page.locator(part).screenshot()))


def main(argv=None):
    with cli.program(Config.script):
        config = cli.parse(Config, argv)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if not chromium:
            raise ValueError("there is no Chromium: install it from the packages of the system")
        parts = list(screenshots(Path(config.page).resolve().as_uri(), chromium))

        width = max(part.width for part in parts) + 2 * GAP
        height = sum(part.height + GAP for part in parts) + GAP
        whole = Image.new("RGB", (width, height), parts[0].getpixel((0, 0))[:3])
        y = GAP
        for part in parts:
            whole.paste(part, (GAP, y))
            y += part.height + GAP

        file = io.BytesIO()
        whole.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        write_whole(config.out, file.getvalue())
        print(f"{config.out}: {width} x {height} pixels, {len(file.getvalue()) // 1000} kB")


if __name__ == "__main__":
    main()

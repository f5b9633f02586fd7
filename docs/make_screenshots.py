"""Take the README's picture of the panel: `python -m docs.make_screenshots --host URL`.

Drives img2img of a running WebUI in headless Chromium (chromium and chromedriver must be installed) and writes
`docs/panel.png`.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PANEL = """
    let found = document.querySelector('#dino_upscale_summary');
    while (found.parentElement && !found.parentElement.querySelector('#script_list')) found = found.parentElement;
    found.id = found.id || 'dino_upscale_screenshot';
    return [found.id, found.getBoundingClientRect().height];
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="http://127.0.0.1:7860", help="address of the WebUI (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "panel.png")
    given = parser.parse_args()
    given.out.write_bytes(panel(given.host))


def panel(url: str) -> bytes:
    """PNG of the panel with a picture of 640 x 480 px in the tab."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "hosts")]
    from browser import browser
    from client import TITLE
    from test_page import LINE, SOURCE, choose, tab, upload

    with browser(1500, 1200) as page, tempfile.TemporaryDirectory() as folder:
        page.open(url)
        page.wait("return !!window.dinoUpscale && !!document.querySelector('#img2img_generate')", seconds=90)
        time.sleep(2)  # the page's own scripts go on for a while
        tab(page, 1)
        upload(page, Path(folder), "#img2img_image", (640, 480))
        page.wait(SOURCE)
        choose(page, TITLE)
        page.wait(LINE + ".includes('becomes')")
        name, height = page.run(PANEL)
        page.size(1500, int(height) + 300)
        time.sleep(1)
        page.run("document.getElementById(arguments[0]).scrollIntoView({block: 'start'})", name)
        time.sleep(1)
        return base64.b64decode(page.call(f"/element/{page.find('#' + name)}/screenshot"))


if __name__ == "__main__":
    main()

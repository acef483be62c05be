"""Takes README's picture of a report: the top of the page at desktop width, in headless Chromium.

python benchmarks/report_picture.py runs/compare-demo-language/report.html docs/images/report.png
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.report.browser import started

WIDTH, HEIGHT = 1400, 1150


def main() -> None:
    """Opens the page, takes the picture, keeps its top."""
    page, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as profile,
        started("/usr/bin/chromedriver", "/usr/bin/chromium", Path(profile)) as browser,
    ):
        browser.open(page, width=WIDTH, dark=False)
        browser.picture(out)
    picture = Image.open(out)
    # 200 colours are enough for a page, and a third of the bytes.
    picture.crop((0, 0, WIDTH, min(HEIGHT, picture.height))).convert("RGB").quantize(200).save(
        out, optimize=True
    )


if __name__ == "__main__":
    main()

"""A headless Chromium, driven over chromedriver's own HTTP interface: no package is needed
for it.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


class Browser:
    """One session; the page's console is kept from the first moment."""

    def __init__(self, base: str, chromium: str, profile: Path) -> None:
        self.base = base
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        asked = {
            "alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        }
        self.base += (
            "/session/" + self._send("POST", "/session", {"capabilities": asked})["sessionId"]
        )

    def open(self, page: Path, *, width: int, dark: bool) -> None:
        """Opens a page from disk, as on a screen of this width and with this preference."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", **size)
        self._send("POST", "/url", {"url": page.resolve().as_uri()})

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self._send("POST", "/execute/sync", {"script": f"return {expression}", "args": []})

    def console(self) -> list[str]:
        """What was written to the console since the last call."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        """A screenshot of the whole page."""
        result = self._devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))

    def close(self) -> None:
        """Ends the browser."""
        self._send("DELETE", "", None)

    def _devtools(self, command: str, **parameters: Any) -> Any:
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _send(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        # No proxy: the driver is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]


@contextmanager
def started(driver: str, chromium: str, profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, for as long as the context lasts."""
    process = subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    try:
        lines = (re.search(r"successfully on port (\d+)", line) for line in process.stdout)
        port = next(result[1] for result in lines if result)
        browser = Browser(f"http://127.0.0.1:{port}", chromium, profile)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()

"""A headless Chromium for tests, over a pipe; nothing but the browser itself needs to be installed.

It is looked for as $CHROMIUM, in the PATH, and where `playwright install chromium` puts it.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATTERNS = (
    "chromium_headless_shell-*/*/*headless*shell",
    "chromium-*/*/chrome",
    "chromium-*/*/*.app/Contents/MacOS/*",
)
# The browser reads commands from descriptor 3 and answers on 4.
_LAUNCH = (
    "import fcntl, os, sys\n"
    "r, w = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])\n"
    "os.dup2(r, 3), os.dup2(w, 4), os.execv(sys.argv[3], sys.argv[3:])"
)


def find() -> str:
    """Returns the path of a browser, or ""."""
    places = [os.environ.get("CHROMIUM", ""), *(shutil.which(name) or "" for name in NAMES)]
    cache = os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright"
    places += [str(path) for pattern in PATTERNS for path in Path(cache).glob(pattern)]
    return next((place for place in places if place and os.access(place, os.X_OK)), "")


class Browser:
    """One page of a running browser."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers = commands, os.fdopen(answers, "rb")
        self._next, self._rest, self._session = 0, b"", None
        self.events: list[dict] = []

    def attach(self) -> None:
        """Opens a page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        offline = dict(offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
        self.call("Network.emulateNetworkConditions", **offline)

    def call(self, method: str, **params):
        """Sends a command and returns its result."""
        self._next += 1
        told = {"id": self._next, "method": method, "params": params}
        if self._session:
            told["sessionId"] = self._session
        data = json.dumps(told).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = self._read()
            if answer.get("id") == told["id"]:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path, *, width: int, dark: bool, media: str = "screen") -> None:
        """Opens a file in a window of `width` pixels."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=media, features=scheme)
        self._resize(width, 900)
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def grow(self) -> None:
        """Makes the window as high as the page."""
        size = self.call("Page.getLayoutMetrics")
        self._resize(size["cssLayoutViewport"]["clientWidth"], size["cssContentSize"]["height"])

    def evaluate(self, expression: str):
        """Returns the value of a JavaScript expression."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, path: Path, *, top: int = 0, height: int | None = None) -> None:
        """Writes a PNG of the page, or of `height` pixels of it from `top`."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = dict(x=0, y=top, width=size["width"], height=height or size["height"] - top, scale=1)
        found = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """Returns the page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _resize(self, width: int, height: int) -> None:
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            block = os.read(self._answers.fileno(), 1 << 16)
            assert block, "the browser has ended"
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)


@contextlib.contextmanager
def running(program: str, profile: Path) -> Iterator[Browser]:
    """Starts a browser without a network, and ends it."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    options = ["--headless", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars"]
    options += ["--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # a browser of root's has none
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), program, *options],
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Browser(ours_out, ours_in)
        browser.attach()
        yield browser
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours_out)

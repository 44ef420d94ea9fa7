"""Chromium without a window, driven through the DevTools protocol over two pipes."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time

import pytest

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # it may run as root, and opens nothing but the test's own page
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-pipe",
    "--window-size=1100,900",
    "about:blank",
)


class Browser:
    """One tab.

    Attributes:
        events: every event of the protocol so far, as {"method": …, "params": …}.
    """

    def __init__(self, process: subprocess.Popen, to_browser: int, from_browser: int):
        self.events = []
        self._process = process
        self._write, self._read = to_browser, from_browser
        self._buffer, self._count, self._session = b"", 0, None
        targets: list[str] = []
        while not targets:  # it comes a moment after the browser
            targets = [
                info["targetId"]
                for info in self.send("Target.getTargets")["targetInfos"]
                if info["type"] == "page"
            ]
        (target,) = targets
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, *, seconds: float = 60, **params) -> dict:
        """Calls a method of the protocol and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            answer = self._receive(end - time.monotonic(), method)
            if answer.get("id") == message["id"]:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds: float, waiting_for: str) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise TimeoutError(f"Chromium did not answer {waiting_for}.")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise EOFError(f"Chromium ended, {waiting_for} unanswered.")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def run(self, script: str):
        """Value of a JavaScript expression, which may be a promise."""
        result = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 60):
        """Waits until a JavaScript expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > end:
                body = self.run("document.body.innerText")
                raise TimeoutError(f"{script} did not come true. The page says:\n{body}")
            time.sleep(0.05)
        return value

    def open(self, address: str) -> None:
        """Opens a page and waits until it is loaded."""
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Presses and lets go of a key."""
        fields = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **fields)
        self.send("Input.dispatchKeyEvent", type="keyUp", **fields)

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@contextlib.contextmanager
def chromium(folder):
    """Starts Chromium, or skips the test where there is none.

    Args:
        folder: empty, for the browser's profile.

    Yields:
        A `Browser`.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("There is no Chromium here.")
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    # The browser reads from its file 3 and writes to its file 4.
    command = ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", program]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={folder}", *_ARGUMENTS],
        pass_fds=(from_us, to_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        yield Browser(process, to_browser, from_browser)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        # The process group is this browser's own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)

"""Chromium without a window, over the DevTools protocol: chromedevtools.github.io/devtools-protocol."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.live.stack import wait_until
from tests.patience import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"),
)


def chromium() -> str | None:
    """The path of the installed Chromium."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab. Errors of its scripts, missing files and refusals of the Content-Security-Policy are in `problems`."""

    def __init__(self, work: Path) -> None:
        # With --remote-debugging-pipe messages come on descriptor 3 and go on 4, each ended by a NUL.
        inside_in, self._to = _pipe()
        self._from, inside_out = _pipe()
        command = chromium()
        assert command, f"no Chromium is installed: none of {', '.join(NAMES)}"
        shell = ("bash", "-c", f'exec "$@" 3<&{inside_in} 4>&{inside_out}', "bash")
        self._process = subprocess.Popen(
            [*shell, command, *FLAGS, f"--user-data-dir={work}"],
            pass_fds=(inside_in, inside_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(inside_in)
        os.close(inside_out)
        self._numbers = itertools.count(1)
        self._read = b""
        self._session = ""
        self.problems: list[str] = []
        tab = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command. Events that come before it are read, too."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        with suppress(BrokenPipeError):
            os.write(self._to, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == number:
                assert "result" in answer, f"{method}: {answer}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)
        raise AssertionError(f"Chromium has ended before it answered {method}")

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            message, end, rest = self._read.partition(b"\0")
            if end:
                self._read = rest
                yield json.loads(message)
            else:
                assert select.select([self._from], [], [], PATIENCE)[0], f"Chromium sends nothing for {PATIENCE:g} s"
                more = os.read(self._from, 1 << 20)
                if not more:
                    return
                self._read += more

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            if "/invocations" in params["entry"].get("url", ""):
                return  # a call that the endpoint refuses
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())

    def open(self, url: str) -> None:
        self.command("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression, as JSON has it; a promise is awaited."""
        answer = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def see(self, script: str, within: float = PATIENCE) -> Any:
        """The first true value of an expression."""
        return wait_until(lambda: self.run(script), within)

    def press(self, key: str) -> None:
        """One key, by its name in the DOM: Tab, Enter."""
        more = {"text": "\r"} if key == "Enter" else {}
        code = {"Tab": 9, "Enter": 13}[key]
        self.command("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **more)
        self.command("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the window, and whether the user prefers dark colours."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        os.close(self._to)  # Chromium ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._from)


def _pipe() -> tuple[int, int]:
    """A pipe whose descriptors are none of those that Chromium expects."""
    ends = os.pipe()
    made = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in ends]
    for each in ends:
        os.close(each)
    return made[0], made[1]


@contextmanager
def browser(work: Path) -> Iterator[Browser]:
    """`work`: an empty directory for its profile."""
    made = Browser(work)
    try:
        yield made
    finally:
        made.close()

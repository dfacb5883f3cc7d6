"""A headless Chromium for tests, spoken to by the DevTools protocol over two pipes; nothing to install beside it.

``--remote-debugging-pipe`` reads commands from file descriptor 3 and answers on 4: JSON messages that end in NUL.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("chromium", "google-chrome", "chromium-browser")
FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-extensions", "disable-dev-shm-usage")
SECONDS = 60  # for one answer; a loaded machine is slow, never this slow

# Puts the two ends where the browser looks for them, then becomes the browser.
ONTO_3_AND_4 = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def executable():
    """The path of a Chromium or Chrome; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One browser with one page at a time.

    Attributes:
        errors: what the page wrote to the console as errors or left uncaught, since it was opened.
        requests: the addresses that it asked for.
    """

    def __init__(self, profile):
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]  # clear of 3 and 4
        command = [sys.executable, "-c", ONTO_3_AND_4, *map(str, ends), executable(), *(f"--{flag}" for flag in FLAGS)]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for fd in (*ends, theirs_in, theirs_out):
            os.close(fd)
        self.buffer, self.last, self.session, self.target = b"", 0, None, None
        self.errors, self.requests, self.loaded = [], [], False

    def close(self):
        try:
            self.call("Browser.close")
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.into)

    def call(self, method, **params):
        """The result of a command; a RuntimeError where the browser refuses it."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        asked = self.last
        while (answer := self._message()).get("id") != asked:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _message(self):
        while b"\0" not in self.buffer:
            if not select.select([self.into], [], [], SECONDS)[0]:
                raise TimeoutError(f"the browser said nothing for {SECONDS} s")
            read = os.read(self.into, 1 << 20)
            if not read:
                raise ConnectionError("the browser ended")
            self.buffer += read
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event, params):
        if event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Page.loadEventFired":
            self.loaded = True

    def open(self, path, width=1280, height=900, dark=False):
        """Open a page afresh at a size and in a colour scheme, with no network to reach."""
        if self.target:
            self.session = None
            self.call("Target.closeTarget", targetId=self.target)
        self.target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        self.errors, self.requests, self.loaded = [], [], False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.call("Network.emulateNetworkConditions", **offline)
        self.size(width, height)
        self.scheme(dark)
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while not self.loaded:
            self._message()
        self.settle()

    def size(self, width, height=900):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        if self.loaded:
            self.settle()

    def scheme(self, dark):
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def settle(self):
        """Two frames later: layout is done and what observes sizes has drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")

    def run(self, expression):
        """The value of a JavaScript expression in the page; an exception there is a RuntimeError here."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def box(self, selector):
        """(x, y, width, height) in the window of the first match, once it has been scrolled to."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self.settle()
        return self.run(f"(({{x, y, width, height}}) => [x, y, width, height])({found}.getBoundingClientRect())")

    def _mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def hover(self, selector, across=0.5, down=0.5):
        """Move the pointer to a place in an element, as shares of its width and height."""
        x, y, width, height = self.box(selector)
        self._mouse("mouseMoved", x + across * width, y + down * height)
        self.settle()

    def click(self, selector):
        x, y, width, height = self.box(selector)
        at = (x + width / 2, y + height / 2)
        self._mouse("mouseMoved", *at)
        for kind in ("mousePressed", "mouseReleased"):
            self._mouse(kind, *at, button="left", clickCount=1)
        self.settle()

    def press(self, *keys):
        """Press keys by name ("ArrowRight", "Tab", "Enter", "Escape", "Home") in what has the focus."""
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "Home": 36, "End": 35, " ": 32}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for key in keys:
            common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
            typed = {"text": {"Enter": "\r", " ": " "}[key]} if key in ("Enter", " ") else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **common, **typed)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)
        self.settle()

    def focus(self, selector):
        self.box(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).focus({{preventScroll: true}})")

    def screenshot(self, path, selector=None):
        """The whole page as PNG, or one element of it."""
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        if selector:
            found = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
            x, y, w, h = self.run(f"(b => [b.x + scrollX, b.y + scrollY, b.width, b.height])({found})")
            clip = {"x": x, "y": y, "width": w, "height": h, "scale": 1}
        time.sleep(0.1)
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

"""Headless Chromium through ChromeDriver, by the WebDriver protocol over HTTP and nothing else."""

import base64
import contextlib
import functools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--force-device-scale-factor=1",
]  # fmt: skip
KEYS = {"left": "\ue012", "right": "\ue014", "home": "\ue011", "end": "\ue010", "escape": "\ue00c", "enter": "\ue007"}


def programs():
    """The browser and its driver; None where one of them is not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window; its waits raise `AssertionError` with what was waited for."""

    def __init__(self, url, session):
        self._base = f"{url}/session/{session}"

    def call(self, path, body=None, method=None):
        return _request(self._base + path, body, method)

    def open(self, address):
        self.call("/url", {"url": address})

    def size(self, width, height):
        self.call("/window/rect", {"width": width, "height": height})

    def run(self, script, *args):
        """What a script returns, with `arguments` as in JavaScript."""
        return self.call("/execute/sync", {"script": script, "args": list(args)})

    def find(self, selector):
        return next(iter(self.call("/element", {"using": "css selector", "value": selector}).values()))

    def click(self, selector):
        self.call(f"/element/{self.find(selector)}/click", {})

    def type(self, selector, text):
        self.call(f"/element/{self.find(selector)}/value", {"text": text})

    def wait(self, script, *args, seconds=30):
        """Until a script returns something true; that."""
        end = time.monotonic() + seconds
        while not (found := self.run(script, *args)):
            assert time.monotonic() < end, f"never true in {seconds} s: {script} {args}"
            time.sleep(0.05)
        return found

    def pointer(self, *steps, kind="mouse"):
        """Steps of one pointer: ("move", x, y), ("down",), ("up",) in pixels of the window."""
        made = {"move": lambda x, y: {"type": "pointerMove", "x": int(x), "y": int(y), "duration": 0},
                "down": lambda: {"type": "pointerDown", "button": 0},
                "up": lambda: {"type": "pointerUp", "button": 0}}  # fmt: skip
        actions = [made[name](*rest) for name, *rest in steps]
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions}
        self.call("/actions", {"actions": [pointer]})

    def keys(self, *names):
        actions = [{"type": kind, "value": KEYS.get(n, n)} for n in names for kind in ("keyDown", "keyUp")]
        self.call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("/screenshot")))

    def console(self):
        """What the console has been told of warnings and errors since the last call."""
        return self.call("/se/log", {"type": "browser"})


@contextlib.contextmanager
def browser(width=1400, height=1000):
    """A browser of its own, gone afterwards."""
    chromium, chromedriver = programs()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, _driver(chromedriver) as url:
        args = [*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"]
        options = {"binary": chromium, "args": args}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = _request(f"{url}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        window = Browser(url, session)
        try:
            yield window
        finally:
            with contextlib.suppress(OSError):
                window.call("", method="DELETE")


@contextlib.contextmanager
def _driver(program):
    process = subprocess.Popen([program, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in iter(process.stdout.readline, ""):
            if "started successfully on port " in line:
                port = line.rpartition(" ")[2].strip(".\n")
                yield f"http://127.0.0.1:{port}"
                return
        raise AssertionError("ChromeDriver did not start")
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@functools.cache
def _opener():
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _request(url, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with _opener().open(request, timeout=120) as reply:
            return json.loads(reply.read())["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.loads(error.read())["value"]["message"]) from None

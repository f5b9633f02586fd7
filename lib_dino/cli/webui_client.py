"""A running WebUI over its HTTP API, with nothing but the standard library.

What goes wrong on the way is an `Unanswered`, whose advice is in the words of someone who starts a WebUI.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ..errors import DinoError

if TYPE_CHECKING:
    from PIL import Image

QUICK_S: Final = 20.0
"""Longest wait for the answer to a question that needs no work, seconds."""
CONSOLE: Final = "The console of the WebUI says more."


class Unanswered(DinoError):  # noqa: N818 - what happened, not whose fault
    """A request came to nothing that could be used.

    Attributes:
        advice: what to do about it.
    """

    def __init__(self, message: str, *, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True)
class Answer:
    """A reply over HTTP.

    Attributes:
        status: of HTTP.
        body: the decoded JSON; text where it was none.
        is_json: whether it was.
    """

    status: int
    body: Any
    is_json: bool

    @property
    def error(self) -> str:
        """The host's own words on what failed, one line; hosts put them under different keys."""
        if not isinstance(self.body, dict):
            return str(self.body).strip().splitlines()[0][:200] if str(self.body).strip() else f"HTTP {self.status}"
        words = (self.body.get(key) for key in ("detail", "errors", "message", "error"))
        first = next((str(word) for word in words if word), f"HTTP {self.status}")
        return " ".join(first.split())[:500]

    def image(self) -> Image.Image:
        """The first picture of a generation.

        Raises:
            ValueError: there is none.
        """
        from PIL import Image

        try:
            image = Image.open(io.BytesIO(base64.b64decode(self.body["images"][0])))
            image.load()
        except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
            raise ValueError(repr(error)) from error
        return image


class WebUI:
    """The WebUI at an address.

    Args:
        url: such as http://127.0.0.1:7860.
        auth: "user:password" of `--api-auth`.
        timeout: how long a generation may take, seconds.

    Raises:
        ValueError: `url` is no address of a web server.
    """

    def __init__(self, url: str, *, auth: str | None = None, timeout: float = 300.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--url must look like http://127.0.0.1:7860: got {url!r}.")
        _ = parts.port  # raises when it is no number
        self.url, self.timeout = url.rstrip("/"), timeout
        self._headers = {"Accept": "application/json"}
        if auth is not None:
            self._headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
        # A proxy for the Internet does not know this machine.
        near = parts.hostname in ("localhost", "127.0.0.1", "::1")
        handlers = [urllib.request.ProxyHandler({})] if near else []
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str, *, timeout: float | None = None) -> Answer:
        """Ask something that needs no work."""
        return self._call(path, None, min(self.timeout, QUICK_S) if timeout is None else timeout)

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        """Ask for a generation, and wait for it."""
        return self._call(path, json.dumps(body).encode(), self.timeout)

    def sysinfo(self) -> dict[str, Any]:
        """The host's account of itself and its last exceptions; empty where it does not tell."""
        answer = self.get("/internal/sysinfo", timeout=self.timeout)
        return answer.body if answer.status == 200 and isinstance(answer.body, dict) else {}

    def blame(self) -> str:
        """Advice after a failed generation: the extension that the host's last exception ends in, where not ours."""
        try:
            exceptions = self.sysinfo().get("Exceptions")
            frames = [str(frame) for frame in exceptions[0]["traceback"]] if exceptions else []
        except (Unanswered, KeyError, TypeError):
            frames = []
        names = [part.split("/")[0] for part in " ".join(frames).replace("\\", "/").split("/extensions/")[1:]]
        if not names or "lib_dino" in frames[-1]:
            return CONSOLE
        return f"The error comes from the extension {names[-1]!r}: update it or switch it off. {CONSOLE}"

    def _call(self, path: str, data: bytes | None, timeout: float) -> Answer:
        headers = self._headers | ({"Content-Type": "application/json"} if data is not None else {})
        try:
            request = urllib.request.Request(self.url + path, data, headers)
            with self._opener.open(request, timeout=timeout) as reply:
                return _answer(reply.status, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.read())
        except (OSError, ValueError, UnicodeError) as error:
            raise self._unanswered(error, timeout) from error
        except Exception as error:  # http.client's own kinds: not HTTP at all, cut short
            raise Unanswered(
                f"{self.url} answers, but not as a web server: {error!r}",
                advice="Give the address that the WebUI prints as \"Running on local URL\".",
            ) from error

    def _unanswered(self, error: Exception, timeout: float) -> Unanswered:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError | socket.timeout):
            return Unanswered(
                f"no answer within {timeout:g} s",
                advice="The WebUI may still be loading, or be busy with a generation: wait and try again, or allow "
                "more with --timeout SECONDS.",
            )
        if isinstance(reason, ConnectionRefusedError):
            return Unanswered(
                f"nothing listens at {self.url}",
                advice="Start the WebUI, or give the address that it prints as \"Running on local URL\" with --url.",
            )
        if isinstance(reason, socket.gaierror):
            return Unanswered(f"there is no computer of that name: {self.url}", advice="Check --url for a typo.")
        if isinstance(reason, ssl.SSLError):
            return Unanswered(
                f"the encrypted connection failed: {reason}",
                advice="Use http:// instead of https://, unless the WebUI was started with --tls-keyfile.",
            )
        if isinstance(reason, ConnectionError):
            return Unanswered(
                f"the connection broke: {reason}",
                advice="The WebUI may have crashed or be restarting: look at its console, then try again.",
            )
        return Unanswered(f"{self.url} cannot be reached: {reason}", advice="Check the address and the network.")


def _answer(status: int, raw: bytes) -> Answer:
    try:
        return Answer(status, json.loads(raw or b"null"), True)
    except ValueError:
        return Answer(status, raw[:2000].decode(errors="replace"), False)

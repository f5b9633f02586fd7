"""The doctor: a list of checks, each ok, failed with what to do about it, or skipped with why.

`doctor_host` has those of a running WebUI, `doctor_local` those of the command line's own environment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..errors import DinoError
from ..version import __version__

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
_CHECK_WIDTH: Final = 20


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        status: `OK`, `FAILED` or `SKIPPED`.
        detail: what was seen, one line.
        advice: what to do about a failure; empty otherwise.
    """

    check: str
    status: str
    detail: str
    advice: str = ""

    def lines(self) -> list[str]:
        """As printed."""
        found = [f"{self.status:8} {self.check:{_CHECK_WIDTH}} {self.detail}"]
        return [*found, f"{'':8} {'':{_CHECK_WIDTH}} -> {self.advice}"] if self.advice else found


class Failed(Exception):  # noqa: N818 - a finding, not a fault of ours
    """Raised by a check: what is wrong and what to do about it."""

    def __init__(self, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.advice = advice


class Skipped(Exception):  # noqa: N818
    """Raised by a check that cannot be made: why."""


@dataclass(frozen=True)
class Check:
    """One question.

    Attributes:
        name: for the report.
        ask: given what the checks before it left, says what it saw; or raises `Failed` or `Skipped`.
        needs: names of checks that must have been ok, else this one is skipped.
    """

    name: str
    ask: Callable[[Any], str]
    needs: tuple[str, ...] = ()


def examine(checks: Sequence[Check], subject: Any) -> Iterator[Finding]:
    """The findings, one by one; every check comes exactly once, whatever happens to those before it."""
    fine: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name not in fine]
        if missing:
            yield Finding(check.name, SKIPPED, f"needs: {', '.join(missing)}")
            continue
        finding = _made(check, subject)
        if finding.status == OK:
            fine.add(check.name)
        yield finding


def report(findings: Iterator[Finding], *, say: Callable[[str], None], as_json: bool, **about: Any) -> int:
    """Say each finding as it comes, or all at the end as JSON.

    Returns:
        The exit code: 0 when nothing failed, 1 otherwise.
    """
    held = []
    for finding in findings:
        held.append(finding)
        if not as_json:
            for line in finding.lines():
                say(line)
    failed = sum(finding.status == FAILED for finding in held)
    if as_json:
        checks = [asdict(finding) for finding in held]
        say(json.dumps({"version": __version__, **about, "ok": not failed, "checks": checks}, indent=2))
    else:
        counts = {status: sum(f.status == status for f in held) for status in (OK, FAILED, SKIPPED)}
        say(", ".join(f"{count} {status}" for status, count in counts.items() if count) + ".")
    return 1 if failed else 0


def _made(check: Check, subject: Any) -> Finding:
    try:
        return Finding(check.name, OK, check.ask(subject))
    except Skipped as why:
        return Finding(check.name, SKIPPED, str(why))
    except (Failed, DinoError) as error:
        return Finding(check.name, FAILED, str(error), getattr(error, "advice", ""))

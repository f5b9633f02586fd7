"""Picture files, without their pixels: what may be read and written, whole-or-nothing writing, saved text.

Loads without torch, so that the command line can refuse bad input at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError

from ..errors import DinoError, ImageError

MAX_PIXELS: Final = 1_000_000_000
FORMATS: Final = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
}
READABLE: Final = frozenset({*FORMATS, ".gif", ".bmp", ".avif", ".jp2", ".ppm", ".pgm", ".tga"})
# What Pillow raises on damaged files.
DAMAGED: Final = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError, OverflowError,
    struct.error, zlib.error,
)
_MAX_SIDE: Final = {"JPEG": 65_500, "WEBP": 16_383}
_MAX_EXIF: Final = 65_500  # one JPEG segment
_EXIF_IFD: Final = 0x8769
_USER_COMMENT: Final = 0x9286
_DESCRIPTION: Final = 270  # of a TIFF that was written in strips
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003


@contextlib.contextmanager
def open_picture(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A file as a lazy PIL image; whatever is wrong with it, inside the block too, is an `ImageError`.

    Args:
        max_pixels: pictures of more are refused before a pixel is decoded; `MAX_PIXELS` at most.
    """
    _check_source(Path(path))
    with _opened(path, str(path), max_pixels) as image:
        yield image


@contextlib.contextmanager
def open_bytes(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A file's bytes as a lazy PIL image, like `open_picture`; `name` stands for it in messages."""
    if not data:
        raise ImageError(f"{name} should be a picture, but is empty (0 bytes).")
    with _opened(io.BytesIO(data), name, max_pixels) as image:
        yield image


@contextlib.contextmanager
def _opened(file: str | os.PathLike[str] | io.BytesIO, path: str, max_pixels: int) -> Iterator[Image.Image]:
    try:
        with _pixel_limit(), _no_warnings(), Image.open(file) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(
                    f"a picture may have at most {max_pixels / 10**6:g} megapixels, and this one has "
                    f"{image.width}x{image.height} px. Raise --max-megapixels, or cut it into parts."
                    if max_pixels < MAX_PIXELS
                    else f"a picture may have at most {MAX_PIXELS // 10**6} megapixels, and this one has "
                    f"{image.width}x{image.height} px. Cut it into parts."
                )
            yield image
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path}: a picture may have at most {MAX_PIXELS // 10**6} megapixels. Cut it into parts. "
            f"({error})"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} should be a picture, but is of no kind known here, or damaged. "
            "Give a PNG, JPEG, WebP, TIFF, GIF or BMP file."
        ) from None
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except MemoryError:
        raise ImageError(f"{path}: there is not enough memory to read it. Cut it into parts.") from None
    except DinoError:
        raise
    except Exception as error:  # whatever a decoder makes of a damaged file
        said = str(error)[:300] or type(error).__name__
        raise ImageError(f"{path} is damaged or cut short: {said}. Get the file again.") from None


def read_settings_text(path: str | os.PathLike[str]) -> str:
    """The settings text a picture carries.

    Raises:
        ImageError: the file is missing or damaged, or the picture carries no text.
    """
    with open_picture(path) as image:
        image.load()  # a PNG's text may follow its pixels
        text = image.info.get("parameters") or _user_comment(image) or _description(image)
    if not isinstance(text, str) or not text.strip():
        raise ImageError(f"{path} carries no settings. Give a picture written by DINO Upscale or the WebUI.")
    return text


def check_writable(
    path: str | os.PathLike[str], force: bool = False, *,
    size: tuple[int, int] | None = None, transparent: bool = False,
) -> None:
    """Find out, before the work, whether a picture could be written to `path`.

    Args:
        path: its ending chooses the format, see `FORMATS`.
        force: an existing file may be replaced.
        size: (height, width) of the picture, pixels, when known.
        transparent: the picture has an alpha channel that must be kept.

    Raises:
        ImageError: it could not.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        came = f"{path.name} ends in {path.suffix!r}" if path.suffix else f"{path.name} has no ending"
        raise ImageError(f"The ending of a file chooses its format, but {came}. Use {', '.join(FORMATS)}.")
    if kind == "JPEG" and transparent:
        raise ImageError(f"{path.name}: JPEG cannot keep transparency. Write a PNG, WebP or TIFF instead.")
    limit = _MAX_SIDE.get(kind)
    if size and limit and max(size) > limit:
        raise ImageError(
            f"{path.name}: a {kind} may have at most {limit} px on a side, the picture would have "
            f"{size[1]}x{size[0]} px. Write a PNG or TIFF instead."
        )
    check_new_file(path, force)


def check_new_file(path: str | os.PathLike[str], force: bool = False) -> None:
    """Find out whether a file of any kind could be written to `path`, by trying its folder.

    Raises:
        ImageError: it could not, or it exists and `force` is off.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ImageError(f"{path} should be a file to write, but is a folder. Add a file name.")
        if os.path.lexists(path) and not force:
            raise ImageError(f"{path} exists already. Choose another name, or allow it with --force.")
        temporary = _temporary(path)
        with open(temporary, "xb"):
            pass
        temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], force: bool = False) -> Iterator[Path]:
    """A temporary name beside `path` to write to; becomes `path` when the block ends well, else vanishes.

    Raises:
        ImageError: the disk failed, or `path` has come to exist and `force` is off.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        if os.path.lexists(path) and not force:
            raise ImageError(f"{path} exists already. Choose another name, or allow it with --force.")
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def exif_bytes(source: bytes | None, *, size: tuple[int, int], text: str, kind: str) -> bytes | None:
    """The source's EXIF with its size brought up to date and `text` as the user comment, as A1111 keeps it.

    EXIF that is damaged, or too long for a JPEG, is given up for the text.
    """
    if source:
        with _no_warnings(), contextlib.suppress(*DAMAGED):
            merged = _merged_exif(source, size, text)
            if kind != "JPEG" or len(merged) <= _MAX_EXIF:
                return merged
    return _merged_exif(b"", size, text) if text else None


def _temporary(path: Path) -> Path:
    _sweep(path.parent)
    return path.with_name(f".dino-upscale-{os.getpid()}{path.suffix}.tmp")


_TEMPORARY: Final = re.compile(r"\.dino-upscale-(\d{1,9})(?:\.\w+)?\.tmp")
_STALE_S: Final = 3600


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left half written: their files have changed for an hour no more."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = _TEMPORARY.fullmatch(entry.name)
            if found and int(found[1]) != os.getpid() and time.time() - entry.stat().st_mtime > _STALE_S:
                os.unlink(entry.path)


def _unwritable(path: Path, error: OSError) -> ImageError:
    if not path.parent.exists():
        return ImageError(f"{path} cannot be written: there is no folder {path.parent}. Create it first.")
    return ImageError(f"{path} cannot be written: {error.strerror or error}. Choose another place.")


def _check_source(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path} should be a picture, but is a folder. Give a file in it.")
        if not stat.S_ISREG(mode):  # reading a pipe could wait for ever
            raise ImageError(f"{path} should be a picture, but is no regular file. Save it to one first.")
        with open(path, "rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist. Check the name.") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.") from error
    if empty:
        raise ImageError(f"{path} should be a picture, but is empty (0 bytes). Get the file again.")


@contextlib.contextmanager
def _pixel_limit() -> Iterator[None]:
    """Pillow's guard against decompression bombs, moved to `MAX_PIXELS`; it refuses at twice its number."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow's remarks on large files and blemished metadata kept from a user, who cannot act on them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _merged_exif(source: bytes, size: tuple[int, int], text: str) -> bytes:
    exif = Image.Exif()
    exif.load(source)
    photo = exif.get_ifd(_EXIF_IFD)
    sides = {_PIXEL_WIDTH: size[1], _PIXEL_HEIGHT: size[0]}
    photo.update({tag: side for tag, side in sides.items() if tag in photo})
    if not text:
        return exif.tobytes()
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    photo[_USER_COMMENT] = comment
    exif[_EXIF_IFD] = photo  # Pillow before 11 writes no directory that was not there
    data = exif.tobytes()
    # Pillow types the entry BYTE (1); EXIF asks for UNDEFINED (7), and A1111's reader insists on it.
    order = ">" if data[6:8] == b"MM" else "<"
    entry, wanted = (struct.pack(f"{order}HHL", _USER_COMMENT, kind, len(comment)) for kind in (1, 7))
    return data.replace(entry, wanted, 1)


def _description(image: Image.Image) -> str:
    if image.format != "TIFF":
        return ""
    text = str(image.getexif().get(_DESCRIPTION, ""))
    with contextlib.suppress(UnicodeError):  # written as UTF-8, read as Latin-1
        return text.encode("latin-1").decode()
    return text


def _user_comment(image: Image.Image) -> str:
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
    if not isinstance(comment, bytes):
        return str(comment)
    head, body = comment[:8], comment[8:]
    return body.decode("utf-16-be" if head == b"UNICODE\0" else "utf-8", errors="replace")

"""The command line: `python -m lib_dino upscale | settings | demo | doctor`.

Every flag of a setting is read off its declaration. Loads without torch.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from ..declarations import GROUPS, Knob
from ..errors import DinoError, Interrupted, SettingsError
from ..pictures.files import MAX_PIXELS, open_picture, read_settings_text
from ..pictures.infotext import parse_infotext
from ..settings import MAX_REFERENCES, PRESETS, Settings, knobs, preset
from ..version import __version__
from ..webui_settings import retired_notes, webui_knobs
from . import batch
from .batch import Options, describe, flag_of, say
from .jobs import UsageError, check_sources_stay, find_pictures, plan_jobs, prepare, size_suffix
from .signals import stopping

EXAMPLE: Final = Path(__file__).resolve().parents[2] / "examples" / "astronaut.png"
_MOST_MP: Final = MAX_PIXELS // 10**6
_DEMO_SEED: Final = 1
_DEMO_SIDE_PX: Final = 512

_EXIT_CODES: Final = """\
exit codes:
  0    every picture was done
  1    some pictures failed, the others were done
  2    the command line or a setting is wrong; nothing was done
  3    nothing could be done: every picture failed, or a model could not be loaded
  130  stopped by Ctrl-C. What is done of the picture is written, the rest is the enlarged source, and --resume goes
       on from there. Ctrl-C once more ends at once: finished pictures stay, no half-written file is left
  143  the same, by SIGTERM
"""
_EXAMPLES: Final = """\
examples:
  python -m lib_dino upscale photo.jpg -o photo_large.png
      twice as large, with the settings that suit most photos
  python -m lib_dino upscale photo.jpg -o out --scale 4 --preset conservative --compare
      four times as large, close to the source, with a comparison beside it
  python -m lib_dino upscale holiday '*.webp' -o out --width 3840 --report
      a folder and a pattern; each result 3840 px wide, with a JSON report beside it
  python -m lib_dino settings out/photo_x4.png
      print the settings a picture was made with
  python -m lib_dino doctor --url http://127.0.0.1:7860
      check the extension in a running WebUI

"""
_FORM: Final[dict[str, Any]] = {
    "epilog": _EXAMPLES + _EXIT_CODES,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "allow_abbrev": False,
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(batch.USAGE, f"error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code, see `--help`.
    """
    try:
        args = _parser().parse_args(_report_flag(sys.argv[1:] if argv is None else argv))
        code: int = args.command(args)
        return code
    except SystemExit as stop:  # argparse, after --help or an error
        return stop.code if isinstance(stop.code, int) else batch.DONE
    except (KeyboardInterrupt, Interrupted):
        say("Interrupted. Finished pictures stay, nothing half written is left.", error=True)
        return batch.INTERRUPTED
    except DinoError as error:
        say(f"error: {describe(error)}", error=True)
        return batch.USAGE if isinstance(error, SettingsError | UsageError) else batch.NOTHING_DONE


def _upscale(args: argparse.Namespace) -> int:
    settings = _settings(args)
    sources = find_pictures(args.inputs)
    suffix = size_suffix(settings)
    jobs = plan_jobs(sources, args.out, suffix, report=args.report, sheet=args.compare, maps=args.map)
    if args.reference and not (settings.borrows or args.quiet):
        say("note: --reference does nothing with DINO guidance off or --dino-strength 0.", error=True)
    does_nothing = not (settings.guides or args.reference or args.quiet)
    if getattr(args, "dino_strength", 0) and settings.dino_enabled and does_nothing:
        note = "--dino-strength does nothing at full source consistency without --reference."
        say(f"note: {note}", error=True)
    for reference in args.reference:
        with open_picture(reference, max_pixels=int(args.max_megapixels * 10**6)):
            pass  # what cannot be read ends the command before any work
    if args.force and not args.replace_source:
        check_sources_stay(jobs)
    with stopping(say) as stop:
        return batch.run(jobs, Options(
            settings, args.reference, args.model, args.force, args.quiet, keeps=args.keeps, resumes=args.resume,
            max_pixels=int(args.max_megapixels * 10**6), stop=stop,
        ))  # fmt: skip


def _show_settings(args: argparse.Namespace) -> int:
    found = parse_infotext(read_settings_text(args.file))
    if not any(knob.key in found for knob in knobs().values()):
        raise DinoError(
            f"{args.file} carries text, but no settings of DINO Upscale. Give a picture that it wrote."
        )
    for note in retired_notes(found):
        say(f"note: {note}", error=True)
    settings = dataclasses.asdict(Settings.from_infotext(found))
    say(json.dumps(settings, indent=2) if args.json else "\n".join(f"{k}: {v}" for k, v in settings.items()))
    return batch.DONE


def _demo(args: argparse.Namespace) -> int:
    """The main job on one photo, every arm; earlier results of the demo are replaced."""
    from ..pictures.picture import read_picture
    from ..pipeline import compare

    photo = Path(args.photo) if args.photo else EXAMPLE
    settings = Settings(seed=_DEMO_SEED)
    [job] = plan_jobs([photo], f"{args.out}/", size_suffix(settings), report="", sheet=True)
    prepare(job, force=True)
    picture = read_picture(photo)
    height, width = picture.size
    if max(height, width) > _DEMO_SIDE_PX:
        say(f"{photo} is {width}x{height} px, larger than the demo's {_DEMO_SIDE_PX} px: this takes longer.")
    for note in picture.notes:
        say(note)
    with batch.progress_bar(photo.name, quiet=False) as progress:
        arms = compare(picture, settings, progress=progress)
    batch.save_arms(arms, job, force=True)
    say(f"Result: {job.out}\nSide by side: {job.sheet}\nReport: {job.report} and {job.page}")
    for line in list(arms.values())[-1].report.summary():
        say(line)
    return batch.DONE


def _doctor(args: argparse.Namespace) -> int:
    from . import doctor, doctor_webui
    from . import webui_client as webapi

    if args.auth is not None and ":" not in args.auth:
        raise UsageError(f"--auth must be USER:PASSWORD, with a colon: got {args.auth!r}.")
    if args.url is None:
        return doctor.report(doctor.examine(doctor.CHECKS, doctor.Here()), say=say, as_json=args.json)
    try:
        webui = webapi.WebUI(args.url, auth=args.auth, timeout=args.timeout)
    except ValueError as error:
        raise UsageError(str(error)) from None
    findings = doctor.examine(doctor_webui.CHECKS, doctor_webui.Visit(webui, fetch=args.fetch))
    return doctor.report(findings, say=say, as_json=args.json, url=webui.url)


def _settings(args: argparse.Namespace) -> Settings:
    given = {name: getattr(args, name) for name in knobs() if hasattr(args, name)}
    other = next((name for name in ("width", "height", "megapixels") if name in given), None)
    if "scale_factor" in given and other:
        raise UsageError(f"Give the size once: --scale and {flag_of(other)} exclude each other. Drop one.")
    return Settings.from_mapping({**(preset(args.preset) if args.preset else {}), **given})


def _parser() -> argparse.ArgumentParser:
    description = "Upscale pictures tile by tile with a diffusion model, and keep them what they are."
    parser = _Parser(prog="python -m lib_dino", description=description, **_FORM)
    parser.add_argument("--version", action="version", version=f"DINO Upscale {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_upscale(_command(commands, "upscale", _upscale, "Upscale pictures."))
    shown = _command(commands, "settings", _show_settings, "Print the settings a picture was made with.")
    shown.add_argument("file", metavar="FILE", help="a picture written by DINO Upscale")
    shown.add_argument("--json", action="store_true", help="print JSON")
    demo = _command(
        commands, "demo", _demo,
        "Upscale a photo twofold with the defaults and set the result beside plain enlargement.",
    )
    demo.add_argument("photo", metavar="PHOTO", nargs="?", help="a picture (default: the one that ships)")
    demo.add_argument("--out", metavar="DIR", default="out", help="folder to write to (default: %(default)s)")
    _add_doctor(_command(
        commands, "doctor", _doctor,
        "Check a running WebUI over its API, or without --url this command line's own environment. Prints one line a "
        "check: ok, failed and what to do, or skipped and why. Exit code 0 when nothing failed, else 1.",
    ))  # fmt: skip
    return parser


def _add_doctor(parser: _Parser) -> None:
    parser.add_argument("--url", metavar="URL", help="the WebUI's address, such as http://127.0.0.1:7860")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="the pair of the WebUI's --api-auth")
    parser.add_argument(
        "--timeout", metavar="S", type=_positive, default=300.0,
        help="longest wait for one tiny generation, seconds (default: %(default)g)",
    )
    parser.add_argument("--fetch", action="store_true", help="also try a feature model that must be downloaded")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=help, description=help, **_FORM)
    parser.set_defaults(command=run)
    return parser


def _add_upscale(parser: _Parser) -> None:
    parser.add_argument("inputs", metavar="IN", nargs="+", help="files, folders (their pictures) or patterns")
    parser.add_argument(
        "-o", "--out", metavar="OUT", required=True,
        help="a .png, .jpg, .webp or .tif file for one picture, else a folder (made when missing), "
        "where photo.jpg becomes photo_x2.png",
    )
    parser.add_argument(
        "--preset", choices=PRESETS,
        help=f"{webui_knobs()['preset'].help[:-1]}; flags given beside it win. {_presets_in_words()}",
    )
    for title in GROUPS:
        _add_group(parser, title)
    group = parser.add_argument_group("Model and files")
    group.add_argument(
        "--reference", metavar="FILE", action="append", default=[],
        help=f"a sharp picture of the same thing, which lends detail where it matches, by --dino-strength; up to "
        f"{MAX_REFERENCES}, with a --reference before each",
    )
    group.add_argument("--model", metavar="DIR", help="folder of a diffusion model (default: the embedded)")
    group.add_argument(
        "--report", metavar="FILE.json", nargs="?", const="",
        help="write settings and figures as JSON, to FILE.json or beside each result, and as a page to "
        "FILE_report.html",
    )
    group.add_argument(
        "--map", action="store_true",
        help="also write NAME_map.png, a map of drift from the source, and NAME_worst.png, the three worst places "
        "beside the source",
    )
    group.add_argument(
        "--compare", action="store_true",
        help="also write NAME_compare.png: Lanczos, plain img2img, the result",
    )
    group.add_argument("--force", action="store_true", help="replace files that exist")
    group.add_argument("--replace-source", action="store_true", help="with --force: replace the picture itself too")
    group.add_argument(
        "--max-megapixels", metavar="MP", type=_megapixels, default=float(_MOST_MP),
        help="refuse larger pictures before they are decoded (default and most: %(default)g)",
    )
    group.add_argument(
        "--resume", action="store_true",
        help="go on with a job that was cut short, whatever ended it; its finished tiles were kept on disk",
    )
    group.add_argument(
        "--no-keep", dest="keeps", action="store_false",
        help="keep no finished tiles on disk; they are removed once the picture is written",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar, no notes")


def _add_group(parser: _Parser, title: str) -> None:
    members = [knob for knob in knobs().values() if knob.group == title]
    if members:
        group = parser.add_argument_group(title)
        for knob in members:
            _add_knob(group, knob)


def _add_knob(group: Any, knob: Knob) -> None:
    if knob.kind is bool:
        help_text = f"Switches this off: {knob.help[0].lower()}{knob.help[1:]}" if knob.default else knob.help
        action = "store_false" if knob.default else "store_true"
        group.add_argument(knob.flag, dest=knob.name, action=action, default=argparse.SUPPRESS, help=help_text)
        return
    limits = "." if knob.kind is str else f" ({knob.limit()}; default {knob.default:g})"
    group.add_argument(
        knob.flag, dest=knob.name, metavar=knob.unit.upper() or {int: "N", float: "X"}.get(knob.kind, "MODEL"),
        type=_reader(knob), default=argparse.SUPPRESS, help=f"{knob.help[:-1]}{limits}".replace("%", "%%"),
    )


def _reader(knob: Knob) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return knob.kind(text)
        except ValueError:
            whole = "a whole number, " if knob.kind is int else "a number, "
            raise argparse.ArgumentTypeError(f"must be {whole}{knob.limit()}: got {text!r}") from None

    return read


def _megapixels(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) <= _MOST_MP:
            return number
    raise argparse.ArgumentTypeError(f"must be a number above 0, at most {_MOST_MP}: got {text!r}")


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < 1e9:
            return number
    raise argparse.ArgumentTypeError(f"must be a number of seconds above 0: got {text!r}")


def _presets_in_words() -> str:
    return "; ".join(
        f"{name}: {', '.join(f'{flag_of(field)} {value}' for field, value in values.items())}"
        for name, values in PRESETS.items()
    )


def _report_flag(argv: Sequence[str]) -> list[str]:
    """`--report photo.png` is a report beside the result; argparse would take the photo for its FILE."""
    following = [*argv, ""][1:]
    return [
        "--report=" if text == "--report" and not after.lower().endswith(".json") else text
        for text, after in zip(argv, following, strict=True)
    ]

"""docs/fidelity.md with its plot and its contact sheet, from the results of fidelity.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .fidelity_stats import Change, Row, at_detail, averaged, change, spearman

CONDITIONS = {(2, False): "x2 clean", (2, True): "x2 degraded", (4, False): "x4 clean", (4, True): "x4 degraded"}
COLOURS = {"unguided": "#888888", "consistency": "#1f77b4", "DINO 1": "#d62728", "adapter": "#2ca02c",
           "all": "#9467bd", "defaults": "#ff7f0e"}  # fmt: skip
CURVE = ("consistency", "consistency, no model")
"""Arms whose runs at several denoise make up the curve of consistency alone."""
PLAIN = ("consistency, plain",)
"""The same for back-projection alone: the source neither cleaned before nor texture matched after."""
SHEET = ("unguided", "consistency", "defaults", "adapter")

COST = """What the defaults add to the model calls of a tile is counted in [cost.md](cost.md) at native sizes, the tiny
autoencoder, cleaning and texture included: 1.075 on SD 1.5, 1.043 on SDXL, 1.008 on FLUX.1 (wanted: 1.08, 1.05, 1.03).
GPU time and memory were not measured.
"""


class Results:
    """Rows averaged over seeds."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        by = ("picture", "arm", "denoise", "factor", "degraded")
        arms = [row for row in rows if row["group"] in ("arms", "frontier")]
        self.table = averaged(arms, by)
        self.names = list(dict.fromkeys(row["arm"] for row in arms if row["group"] == "arms"))

    def pairs(self, arm: str, denoise: float, condition: tuple[int, bool], figure: str) -> list[tuple[float, float]]:
        """(arm, unguided at the same detail) for each picture."""
        out = []
        for key, row in self.table.items():
            picture, *rest = key
            if rest == [arm, denoise, *condition]:
                same = (picture, "unguided", *condition)
                curve = [r for k, r in self.table.items() if (k[0], k[1], *k[3:]) == same]
                if len(curve) > 3:
                    out.append((row[figure], at_detail(curve, figure, row["HF"])))
        return out

    def against(self, arm: str, rival: str, denoise: float, condition: tuple[int, bool],
                figure: str) -> list[tuple[float, float]]:  # fmt: skip
        """(arm, rival) at the same denoise for each picture."""
        out = []
        for key, row in self.table.items():
            other = self.table.get((key[0], rival, *key[2:]))
            if list(key[1:]) == [arm, denoise, *condition] and other:
                out.append((row[figure], other[figure]))
        return out

    def over(
        self, arm: str, denoise: float, condition: tuple[int, bool], figure: str, *, curve_of: tuple[str, ...] = CURVE
    ) -> list[tuple[float, float]]:
        """(arm, consistency alone) at the same detail for each picture; consistency's curve is read as unguided's."""
        out = []
        for key, row in self.table.items():
            curve = [
                other for k, other in self.table.items()
                if k[0] == key[0] and k[1] in curve_of and k[3:] == condition
            ]  # fmt: skip
            if list(key[1:]) == [arm, denoise, *condition] and len(curve) > 2:
                out.append((row[figure], at_detail(curve, figure, row["HF"])))
        return out

    def mean(self, arm: str, denoise: float, condition: tuple[int, bool], figure: str) -> float:
        """Over pictures; nan where there is none."""
        found = [row[figure] for key, row in self.table.items() if list(key[1:]) == [arm, denoise, *condition]]
        return float(np.mean(found)) if found else float("nan")

    def together(self, names: list[str], denoise: float, condition: tuple[int, bool], figure: str) -> list[float]:
        """Means of arms over the pictures that all of them have; empty where there is none."""
        each = [
            {key[0]: row[figure] for key, row in self.table.items() if list(key[1:]) == [arm, denoise, *condition]}
            for arm in names
        ]
        shared = set.intersection(*map(set, each))
        return [float(np.mean([found[picture] for picture in shared])) for found in each] if shared else []

    def levels(self, condition: tuple[int, bool]) -> list[float]:
        """Denoise at which arms were measured."""
        return sorted({key[2] for key in self.table if key[1] != "unguided" and key[3:] == condition})


def percent(found: Change) -> str:
    """A relative change with its interval and the share of pictures."""
    return f"{100 * found.mean:+.1f} % [{100 * found.low:+.1f}, {100 * found.high:+.1f}] ({100 * found.better:.0f} %)"


def decibel(found: Change) -> str:
    """A change in dB with its interval and the share of pictures."""
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}] ({100 * found.better:.0f} %)"


def table(head: str, rows: list[str]) -> str:
    """Markdown; nothing without rows."""
    return "\n".join([f"| {head} |", "|" + "---|" * (head.count("|") + 1), *(f"| {row} |" for row in rows), ""])


# ---------------------------------------------------------------- sections


def equal_detail(results: Results) -> Iterator[str]:
    """Every arm against a lower denoise."""
    rows = []
    for condition, label in CONDITIONS.items():
        for denoise in results.levels(condition):
            for arm in results.names:
                pairs = {f: results.pairs(arm, denoise, condition, f) for f in ("NS", "T2", "PSNR")}
                if len(pairs["NS"]) > 1:
                    ns, t2, db = (change(pairs[f], f) for f in pairs)
                    plain = {f: results.mean(arm, denoise, condition, f) for f in ("HF", "NS", "T2", "PSNR", "LR")}
                    rows.append(f"{label} | {denoise:g} | {arm} | {plain['HF']:.2f} | {plain['NS']:.4f} "
                                f"| {plain['T2']:.4f} | {plain['PSNR']:.2f} | {plain['LR']:.1f} "
                                f"| {percent(ns)} | {percent(t2)} | {decibel(db)}")  # fmt: skip
    yield "## Against a lower denoise, at equal detail\n"
    yield ("Each picture's unguided curve over denoise is read where its detail (HF) is the arm's; beyond the curve, "
           "at its end. First plain means (LR: PSNR of the result made small again), then the change of the distances "
           "NS and T2 and of PSNR in dB: mean, 95 % bootstrap interval over pictures, share of pictures that improve. "
           "`consistency, no model` is plain enlargement held to its source, no diffusion: in these full-reference "
           "terms it is the rival that is hardest to beat, for it invents nothing and adds little.\n")  # fmt: skip
    yield table("source | denoise | arm | HF | NS | T2 | PSNR | LR | change of NS | of T2 | of PSNR", rows)
    yield from _unguided(results)


def _unguided(results: Results) -> Iterator[str]:
    rows = []
    for condition, label in CONDITIONS.items():
        for denoise in sorted({key[2] for key in results.table if key[1] == "unguided" and key[3:] == condition}):
            plain = [results.mean("unguided", denoise, condition, f) for f in ("HF", "NS", "T2", "PSNR", "LR", "drift")]
            hf, ns, t2, db, back, drift = plain
            rows.append(f"{label} | {denoise:g} | {hf:.2f} | {ns:.4f} | {t2:.4f} | {db:.2f} | {back:.1f} | {drift:.3g}")
    yield "The unguided curve itself (denoise 0 is plain enlargement):\n"
    yield table("source | denoise | HF | NS | T2 | PSNR | LR | drift", rows)


def over_consistency(results: Results) -> Iterator[str]:
    """Every arm against consistency alone."""
    rows = []
    for condition, label in CONDITIONS.items():
        for denoise in results.levels(condition):
            for arm in results.names:
                def found(figure: str, arm: str = arm, denoise: float = denoise,
                          condition: tuple[int, bool] = condition) -> list[tuple[float, float]]:  # fmt: skip
                    return results.against(arm, "consistency", denoise, condition, figure)

                if not arm.startswith("consistency") and len(found("NS")) > 1:
                    ns, t2, db, detail, drift = (change(found(f), f) for f in ("NS", "T2", "PSNR", "HF", "drift"))
                    equal = {f: results.over(arm, denoise, condition, f) for f in ("NS", "PSNR")}
                    at_same = (
                        f"{percent(change(equal['NS'], 'NS'))} | {decibel(change(equal['PSNR'], 'PSNR'))}"
                        if len(equal["NS"]) > 1 else "- | -"
                    )  # fmt: skip
                    rows.append(f"{label} | {denoise:g} | {arm} | {percent(ns)} | {percent(t2)} | {decibel(db)} "
                                f"| {detail.mean:+.3f} | {100 * drift.mean:+.0f} % | {at_same}")  # fmt: skip
    yield "## Against consistency alone, at the same denoise\n"
    yield ("Guide's drift is the guiding network's own measure: a gain there that no independent judge sees is the "
           "network deceiving itself. The last two columns compare at equal detail, with the curve of consistency "
           "alone over denoise.\n")  # fmt: skip
    head = "source | denoise | arm | NS | T2 | PSNR, dB | HF | guide's drift | NS, equal detail | PSNR, equal detail"
    yield table(head, rows)


def parts(results: Results) -> Iterator[str]:
    """What cleaning the source and matching texture each add to back-projection."""
    rows = []
    for condition, label in CONDITIONS.items():
        for arm in ("consistency, no texture", "consistency, source as given", "consistency"):
            same = {f: results.against(arm, PLAIN[0], 0.5, condition, f) for f in ("NS", "T2", "PSNR", "HF")}
            equal = {f: results.over(arm, 0.5, condition, f, curve_of=PLAIN) for f in ("NS", "T2", "PSNR")}
            if len(same["NS"]) > 1 and len(equal["NS"]) > 1:
                ns, t2, db, detail = (change(same[f], f) for f in same)
                rows.append(f"{label} | {arm} | {percent(ns)} | {percent(t2)} | {decibel(db)} | {detail.mean:+.2f} "
                            + "".join(f"| {percent(change(equal[f], f))} " for f in ("NS", "T2"))
                            + f"| {decibel(change(equal['PSNR'], 'PSNR'))}")  # fmt: skip
    yield "## What consistency is made of, at denoise 0.5\n"
    yield ("`consistency` is everything but DINO: the source cleaned first, back-projection in the loop and at the "
           "end, texture matched before the last. Against back-projection alone (`consistency, plain`), at the same "
           "denoise and at equal detail, where its own curve over denoise is read at the arm's HF.\n")  # fmt: skip
    head = "source | arm | NS | T2 | PSNR, dB | HF | NS, equal detail | T2, equal detail | PSNR, equal detail"
    yield table(head, rows)


def planted(results: Results) -> Iterator[str]:
    """What is left of planted things."""
    rows = [row for row in results.rows if row["group"] == "plant" and row["plant"]]
    lines = []
    for (factor, arm, plant), each in averaged(rows, ("factor", "arm", "plant")).items():
        count = len({r["picture"] for r in rows if (r["factor"], r["arm"], r["plant"]) == (factor, arm, plant)})
        elsewhere = 100 * each["elsewhere"] - 100
        lines.append(f"x{factor} | {plant} | {arm} | {each['survival']:.3f} | {elsewhere:+.1f} % | {count}")
    yield "## Planted drift\n"
    yield ("Early in the noise range (above 0.6 of the first level) a disk of another photograph, or texture of it "
           "that downscaling cannot see, is forced into the predicted clean picture. Survival: regression of what it "
           "changed on the plant (1 all of it, 0 nothing). Elsewhere: detail outside the disk with the plant against "
           "without.\n")  # fmt: skip
    yield table("factor | plant | arm | survival | detail elsewhere | pictures", sorted(lines))


def traps(results: Results) -> Iterator[str]:
    """Flat and delicate places."""
    rows = [{**row, "kind": row["picture"].rsplit(" ", 1)[0]} for row in results.rows if row["group"] == "trap"]
    places = {arm: {row["picture"] for row in rows if row["arm"] == arm} for arm in {row["arm"] for row in rows}}
    # An arm that lacks places would be compared over others.
    whole = [arm for arm, found in places.items() if len(found) == max(map(len, places.values()))]
    found = averaged([row for row in rows if row["arm"] in whole], ("kind", "arm"))
    lines = [
        f"{kind} | {arm} | {each['HF']:.2f} | {each['NS']:.4f} | {each['T2']:.4f} | {each['PSNR']:.2f}"
        for (kind, arm), each in sorted(found.items())
    ]
    yield "## Traps\n"
    yield "Places listed in `benchmarks/traps.csv`, x2 clean, denoise 0.5, arms measured on all; HF above 1 is grain.\n"
    yield table("place | arm | HF | NS | T2 | PSNR", lines)


def cost(results: Results) -> Iterator[str]:
    """Processor time against unguided."""
    found = averaged([row for row in results.rows if row["group"] == "cost"], ("picture", "arm"))
    lines = []
    for arm in dict.fromkeys(arm for _, arm in found):
        each = [row["seconds"] / found[p, "unguided"]["seconds"] for (p, a), row in found.items() if a == arm]
        lines.append(f"{arm} | {np.median(each):.2f}")
    yield "## Cost, measured\n"
    yield ("Processor time of a whole run, against unguided on the embedded denoiser, "
           "median over pictures. That denoiser is hardly larger than the feature network, hence the "
           "factors.\n")  # fmt: skip
    yield table("arm | times unguided", lines)


# ---------------------------------------------------------------- verdicts


def verdicts(results: Results) -> Iterator[str]:
    """The issue's figures, one line each, with whether they are reached."""
    yield "## Targets\n"
    lines = [*_whole(results), *_single(results), *_planted(results), *_strength(results)]
    yield table("target | measured | reached", lines)


def _line(target: str, measured: str, reached: bool) -> str:
    return f"{target} | {measured} | {'yes' if reached else 'no'}"


def _whole(results: Results) -> Iterator[str]:
    level = 0.5
    for condition, wanted in {(2, False): 0.5, (2, True): 0.3, (4, False): 0.5, (4, True): 0.3}.items():
        pairs = {f: results.pairs("defaults", level, condition, f) for f in ("NS", "T2", "PSNR")}
        if len(pairs["NS"]) < 2:
            continue
        ns, t2, db = (change(pairs[f], f) for f in pairs)
        where = f"defaults against a lower denoise, {CONDITIONS[condition]}, denoise {level:g}"
        yield _line(f"{where}: NS and T2 -{100 * wanted:.0f} % or better", f"NS {percent(ns)}, T2 {percent(t2)}",
                    max(ns.mean, t2.mean) <= -wanted)  # fmt: skip
        yield _line(f"{where}: PSNR +1.5 dB", decibel(db), db.mean >= 1.5)
        yield _line(f"{where}: 90 % of pictures better", f"NS {100 * ns.better:.0f} %, T2 {100 * t2.better:.0f} %",
                    min(ns.better, t2.better) >= 0.9)  # fmt: skip


def _gain(results: Results, arm: str, figure: str) -> float | None:
    """Relative gain over consistency alone at the same denoise, x2 clean."""
    pairs = results.against(arm, "consistency", 0.5, (2, False), figure)
    return -change(pairs, figure).mean if len(pairs) > 1 else None


def _single(results: Results) -> Iterator[str]:
    for arm in ("DINO 1", "adapter", "all"):
        pairs = {f: results.over(arm, 0.5, (2, False), f) for f in ("NS", "T2", "PSNR")}
        if len(pairs["NS"]) < 2:
            continue
        ns, t2, db = (change(pairs[f], f) for f in pairs)
        enough = (max(ns.mean, t2.mean) <= -0.05 and min(ns.better, t2.better) >= 0.8) or (
            db.mean >= 0.3 and db.better >= 0.8
        )
        yield _line(f"{arm} over consistency, x2 clean, equal detail: -5 % NS and T2 or +0.3 dB on 80 % of pictures",
                    f"NS {percent(ns)}, T2 {percent(t2)}, PSNR {decibel(db)}", enough)  # fmt: skip
        yield _line(f"{arm} over consistency, x2 clean, equal detail: nowhere worse (interval)",
                    f"NS up to {100 * ns.high:+.1f} %, T2 up to "
                    f"{100 * t2.high:+.1f} %", max(ns.high, t2.high) <= 0)  # fmt: skip
    yield from _controls(results)


def _controls(results: Results) -> Iterator[str]:
    for arm in ("DINO 1", "adapter"):
        true = _gain(results, arm, "NS")
        for control in [name for name in results.names if name.startswith(f"{arm}, ") and "no cons" not in name]:
            fake = _gain(results, control, "NS")
            if true is not None and fake is not None:
                measured = f"{100 * fake:+.2f} % against {100 * true:+.2f} %"
                reached = true > 0 and fake <= true / 3
                yield _line(f"{control}: at most a third of the true one's gain (NS)", measured, reached)
    own, true = _gain(results, "DINO 1", "drift"), _gain(results, "DINO 1", "NS")
    if own is not None and true is not None:
        yield _line("guide's own gain at most twice an independent network's (NS)",
                    f"{100 * own:+.1f} % against {100 * true:+.2f} %", 0 < own <= 2 * true)  # fmt: skip


def _planted(results: Results) -> Iterator[str]:
    rows = [row for row in results.rows if row["group"] == "plant" and row["plant"]]
    found = averaged(rows, ("factor", "arm", "plant"))
    for (factor, arm, plant), each in sorted(found.items()):
        if arm in ("consistency", "DINO 1", "all"):
            yield _line(f"{plant} plant, x{factor}, {arm}: survival 20 % or less, detail elsewhere down 2 % or less",
                        f"{100 * each['survival']:.1f} %, {100 * each['elsewhere'] - 100:+.1f} %",
                        each["survival"] <= 0.2 and each["elsewhere"] >= 0.98)  # fmt: skip


def _strength(results: Results) -> Iterator[str]:
    strengths = (0.25, 0.5, 0.75, 1.0)
    means = results.together([f"DINO {s:g}" for s in strengths], 0.5, (2, False), "drift")
    if means:
        yield _line("strength 0.25 to 1 against drift: Spearman -0.9 or less",
                    f"{spearman(strengths, means):+.2f} ({', '.join(f'{m:.3g}' for m in means)})",
                    spearman(strengths, means) <= -0.9)  # fmt: skip
    for condition, label in CONDITIONS.items():
        much = results.mean("defaults", 0.5, condition, "drift")
        little = results.mean("unguided", 0.25, condition, "drift")
        if not np.isnan(much + little):
            yield _line(f"defaults at denoise 0.5 drift no more than unguided at 0.25, {label}",
                        f"{much:.2g} against {little:.2g}", much <= little)  # fmt: skip


# ---------------------------------------------------------------- pictures


def plot(results: Results, path: Path) -> None:
    """NS against HF for each condition: the unguided curve and every arm's means."""
    panel_w, panel_h = 520, 380
    image = Image.new("RGB", (2 * panel_w, 2 * panel_h), "white")
    for index, (condition, label) in enumerate(CONDITIONS.items()):
        points: dict[str, list[tuple[float, float]]] = {}
        for arm, denoise in sorted({(k[1], k[2]) for k in results.table if k[3:] == condition}):
            if arm in COLOURS:
                point = (results.mean(arm, denoise, condition, "HF"), results.mean(arm, denoise, condition, "NS"))
                points.setdefault(arm, []).append(point)
        if points:
            corner = (index % 2 * panel_w, index // 2 * panel_h)
            _panel(ImageDraw.Draw(image), corner, (panel_w, panel_h), label, points)
    image.save(path)


def _panel(draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int], label: str,
           points: dict[str, list[tuple[float, float]]]) -> None:  # fmt: skip
    every = [point for line in points.values() for point in line]
    right, top = 1.05 * max(p[0] for p in every), 1.1 * max(p[1] for p in every)
    x0, y0, width, height = corner[0] + 60, corner[1] + 30, size[0] - 80, size[1] - 80

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return x0 + point[0] / right * width, y0 + height - point[1] / top * height

    draw.rectangle((x0, y0, x0 + width, y0 + height), outline="#000000")
    draw.text((x0, y0 - 16), f"{label}: distance NS (lower is better) against detail HF", fill="black")
    for step in range(5):
        share = step / 4
        draw.text((x0 + share * width - 8, y0 + height + 6), f"{share * right:.2f}", fill="black")
        draw.text((x0 - 40, y0 + height - share * height - 6), f"{share * top:.3f}", fill="black")
    for row, (arm, line) in enumerate(points.items()):
        spots = [at(point) for point in sorted(line)]
        if len(spots) > 1:
            draw.line(spots, fill=COLOURS[arm], width=2)
        for x, y in spots:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=COLOURS[arm])
        draw.text((x0 + 10, y0 + 8 + 14 * row), arm, fill=COLOURS[arm])


def contact_sheet(folder: Path, path: Path, originals: Callable[[], dict[str, Image.Image]]) -> None:
    """Results at 100 %, a picture in each row: the original, then arms at x2 clean, denoise 0.5."""
    if not folder.is_dir():
        return  # no run has kept its pictures
    crops = originals()
    rows = []
    for name, crop in crops.items():
        files = [folder / _kept(name, arm) for arm in SHEET]
        if all(file.is_file() for file in files):
            rows.append([crop, *(Image.open(file) for file in files)])
    if not rows:
        return
    width, height = rows[0][0].size
    sheet = Image.new("RGB", ((width + 4) * len(rows[0]), 16 + (height + 4) * len(rows)), "white")
    for column, label in enumerate(("original", *SHEET)):
        ImageDraw.Draw(sheet).text((column * (width + 4) + 4, 2), label, fill="black")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * (width + 4), 16 + y * (height + 4)))
    sheet.save(path, quality=90)


def _kept(picture: str, arm: str) -> str:
    group = "frontier" if arm == "unguided" else "arms"
    return f"{group} {picture} x2 False 0.5 {arm}.png"


def _addition(results: Results, arm: str) -> str:
    """What may be said of an arm over consistency alone: a gain counts as DINO's only if false features lack it."""
    ns, t2 = (change(results.against(arm, "consistency", 0.5, (2, False), f), f) for f in ("NS", "T2"))
    measured = f"NS {percent(ns)}, T2 {percent(t2)} at the same denoise"
    equal = results.over(arm, 0.5, (2, False), "NS")
    if len(equal) > 1:
        measured += f"; NS {percent(change(equal, 'NS'))} at equal detail"
    if max(ns.high, t2.high) >= 0:
        return f"- {arm} must NOT be said to add fidelity to consistency: {measured}."
    fakes = [name for name in results.names if name.startswith(f"{arm}, ") and "no consistency" not in name]
    shares = {name: -(_gain(results, name, "NS") or 0.0) / ns.mean for name in fakes}
    told = ", ".join(f"{name.split(', ')[1]} {100 * share:.0f} %" for name, share in shares.items())
    if not shares:
        return f"- {arm} adds fidelity to consistency ({measured}); for what it is owed to see its parts."
    held = max(share for share in shares.values()) <= 1 / 3
    verdict = "and the gain is owed to the features" if held else "but must NOT be credited to what the features say"
    return f"- {arm} adds fidelity to consistency ({measured}), {verdict}: gain of false ones, as a share: {told}."


def claims(results: Results) -> Iterator[str]:
    """Sentences the README may use, and those it may not."""
    yield "## What the README may claim\n"
    sure = []
    for condition, label in CONDITIONS.items():
        pairs = results.pairs("defaults", 0.5, condition, "NS")
        alone = results.pairs("consistency", 0.5, condition, "NS")
        if len(pairs) > 1 and alone and (ns := change(pairs, "NS")).high >= 0:
            sure.append(f"- {label}: must NOT be said to be better than a lower denoise: NS {percent(ns)}.")
        elif len(pairs) > 1 and alone:
            low, mean, high = (-100 * value for value in (ns.high, ns.mean, ns.low))
            sure.append(f"- {label}, embedded model, denoise 0.5: at equal detail the defaults are {mean:.0f} % closer "
                        f"to the original than a lower denoise, by an independent network (95 % interval {low:.0f} to "
                        f"{high:.0f} %, better on {100 * ns.better:.0f} % of pictures). Consistency alone: "
                        f"{-100 * change(alone, 'NS').mean:.0f} %.")  # fmt: skip
    for condition, label in CONDITIONS.items():
        ours, plain = ([results.mean(arm, 0.5, condition, f) for f in ("NS", "T2", "PSNR", "HF")]
                       for arm in ("defaults", "consistency, no model"))  # fmt: skip
        if plain[0] < ours[0]:
            sure.append(f"- {label}: a result at denoise 0.5 must NOT be said to be closer to the original than plain "
                        f"enlargement held to its source: NS {ours[0]:.4f} against {plain[0]:.4f}, PSNR {ours[2]:.2f} "
                        f"against {plain[2]:.2f} dB. What the model gives is detail: HF {ours[3]:.2f} against "
                        f"{plain[3]:.2f}.")  # fmt: skip
    sure += [_addition(results, arm) for arm in ("DINO 1", "adapter", "all") if _gain(results, arm, "NS") is not None]
    yield "\n".join(sure) + "\n"


def write_report(rows: list[Row], options: argparse.Namespace) -> None:
    """Everything under `options.docs`."""
    from .fidelity import middles

    rows = [row for row in rows if (row["side"], row["steps"]) == (options.side, options.steps)]
    results = Results(rows)
    options.docs.mkdir(parents=True, exist_ok=True)
    plot(results, options.docs / "fidelity.png")
    contact_sheet(options.pictures_out, options.docs / "fidelity-sheet.jpg", lambda: middles(options.side))
    pictures = {row["picture"] for row in rows if row["group"] == "arms"}
    seeds = sorted({row["seed"] for row in rows})
    intro = (
        "# Fidelity, measured\n\nWritten by `make benchmark-fidelity`; do not edit. Judges that guidance never sees: "
        "features of Yahoo's open_nsfw (NS) and EfficientNet-lite2 (T2), 1 - cosine to the original, and PSNR. HF: "
        "energy of fine detail relative to the original's; more than 1 is too much. The denoiser ran under bfloat16 "
        f"autocast; sources were made small by area averaging.\n\n**Size of this run:** "
        f"{len(rows)} runs, {len(pictures)} held-out photographs, crops of "
        f"{options.side} px, {options.steps} steps of a full denoising, seeds {', '.join(map(str, seeds))} "
        f"(`--pictures {len(pictures)} --side {options.side} --steps {options.steps}`). What a "
        "table lacks was not measured in this run. The embedded denoiser is a small one: percentages do not carry over "
        "to large models, the controls do.\n\n![Frontier](fidelity.png)\n"
    )
    sections = (claims, verdicts, equal_detail, parts, over_consistency, planted, traps, cost)
    text = "\n".join([intro, *(part for section in sections for part in section(results)), COST,
                      "## At 100 %\n\nx2 clean, denoise 0.5.\n\n![Contact sheet](fidelity-sheet.jpg)\n"])  # fmt: skip
    (options.docs / "fidelity.md").write_text(text, encoding="utf-8")
    print(f"{len(rows)} runs reported in {options.docs / 'fidelity.md'}")

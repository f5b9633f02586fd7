"""Five hundred mixed jobs on a running WebUI, and whether it is as it was before them.

    python tests/hosts/soak.py --host http://127.0.0.1:7860 --jobs 500

Jobs are whole, wrong, interrupted, skipped, without numbers, out of memory, beside each other, and plain pictures of
the host's own; twice the page is reloaded. Needs the test extension `probe`. Afterwards the host may hold no callback
or replaced function of DINO Upscale, its options are what they were, a plain picture is bitwise what it was, and
neither tensors nor memory may have grown.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from client import FAMILIES, SMALL, Answer, Host  # noqa: E402

WARM_UP = 40
"""Jobs before the first look: hosts and torch fill their caches."""

ALLOWED = {"wrong": {"422"}, "out of memory": {"ok", "500"}}
"""Answers; what does not fit into memory tile by tile ends with the host's own error."""

MAY_GROW = 64 * 2**20
GIVEN = {**SMALL, "dino_enabled": False}
KINDS = {
    "whole": 30, "guided": 8, "always on": 10, "plain": 8, "wrong": 12, "interrupted": 8, "skipped": 5,
    "no numbers": 8, "out of memory": 5, "both at once": 3, "repair": 3,
}  # fmt: skip


def faults(host: Host, kind: str, *calls: int) -> None:
    host.call(f"/host-probe/faults?kind={kind}&calls={','.join(map(str, calls))}", {})


def job(host: Host, kind: str, chance: random.Random) -> Answer:
    """Do one; the answer."""
    seed = chance.randrange(2**31)
    settings = {**GIVEN, "scale_factor": chance.choice([1.5, 2.0]), "tile_batch_size": chance.choice([1, 2])}
    if kind == "plain":
        return host.img2img(seed=seed)
    if kind == "wrong":
        return host.dropdown({**settings, **chance.choice([{"denoise": 7}, {"none": 1}, {"overlap": 64}])}, seed=seed)
    if kind == "guided":
        return host.dropdown({**settings, "dino_enabled": True, "consistency": 0.5}, seed=seed)
    if kind == "repair":
        return host.dropdown({**settings, "repair_tries": 1, "drift_map": True}, seed=seed)
    if kind == "always on":
        return host.always_on(settings, seed=seed)
    if kind == "both at once":
        other = host.in_background(host.dropdown, settings, seed=seed)
        answer = host.always_on(settings, seed=seed)
        other.join()
        assert other.answer.status == 200
        return answer
    if kind in ("interrupted", "skipped"):
        work = host.in_background(host.dropdown, {**settings, "scale_factor": 4.0}, seed=seed)
        host.wait_for_tile(2)
        host.call("/sdapi/v1/interrupt" if kind == "interrupted" else "/sdapi/v1/skip", {})
        work.join()
        return work.answer
    if kind == "no numbers":
        faults(host, "nan", *chance.sample(range(1, 10), 2))
    if kind == "out of memory":
        faults(host, "memory", *chance.choice([(1,), (1, 2, 3)]))
    answer = host.dropdown(settings, seed=seed)
    faults(host, "nan")
    return answer


def look(host: Host) -> dict[str, object]:
    """What must not change."""
    return {"held": host.call("/host-probe/held").body, "options": host.options(), "plain": host.img2img(seed=3).pixels}


def reload(host: Host) -> None:
    host.call("/host-probe/reload", {})
    time.sleep(3)
    end = time.monotonic() + 180
    while time.monotonic() < end:
        try:
            if host.call("/host-probe/held", timeout=5).status == 200 and host.img2img(seed=3).status == 200:
                return
        except OSError:
            pass
        time.sleep(1)
    raise SystemExit("The host did not come back after the reload.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--family", default="sd1", choices=sorted(FAMILIES))
    parser.add_argument("--reloads", type=int, default=2)
    args = parser.parse_args()
    host, chance = Host(args.host.rstrip("/"), FAMILIES[args.family]), random.Random(13)
    host.choose_checkpoint()
    host.set_options(**host.family.options)
    kinds = chance.choices(list(KINDS), weights=KINDS.values(), k=WARM_UP + args.jobs)
    reload_at = {WARM_UP + args.jobs * (n + 1) // (args.reloads + 1) for n in range(args.reloads)}
    before, began, trace, counts = {}, {}, [], {}
    started = time.monotonic()
    for number, kind in enumerate(kinds):
        if number == WARM_UP:
            before, began = look(host), host.call("/host-probe/memory").body
        if number in reload_at:
            reload(host)
        answer = job(host, kind, chance)
        told = "ok" if answer.status == 200 else str(answer.status)
        if number >= WARM_UP:
            counts.setdefault(kind, {}).setdefault(told, 0)
            counts[kind][told] += 1
            if number % 25 == 0:
                trace.append({"job": number - WARM_UP, **host.call("/host-probe/memory").body})
                print(json.dumps(trace[-1]), flush=True)
    after, ended = look(host), host.call("/host-probe/memory").body
    grown = {name: ended[name] - began[name] for name in ended}
    troubles = [name for name in before if before[name] != after[name]]
    if grown["bytes"] > 2**20:
        troubles.append("tensors")
    half = [each["resident"] for each in trace[len(trace) // 2 :]]
    if args.reloads == 0 and half and half[-1] - half[0] > MAY_GROW:
        troubles.append("memory")
    bad = {kind: told for kind, told in counts.items() if set(told) - ALLOWED.get(kind, {"ok"})}
    print(json.dumps({
        "jobs": args.jobs, "minutes": round((time.monotonic() - started) / 60, 1), "answers": counts, "grown": grown,
        "changed": troubles, "unexpected": bad,
    }, indent=2))  # fmt: skip
    return 1 if troubles or bad else 0


if __name__ == "__main__":
    sys.exit(main())

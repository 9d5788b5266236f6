"""One page a run that carries everything within itself: scores, pictures and videos of held-out clips, stages, rejections, lineage.

It reads tables and the tracker, nothing else, so it can be written again at any time. Videos are re-encoded small for browsers; what is
scored is what lies in the lake.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, select_autoescape

from egomill.kernels.hands import pose_map
from egomill.models.method import split
from egomill.schemas.outcome import REASONS
from egomill.schemas.tensors import unpack, unpack_depth
from egomill.schemas.text import plain
from egomill.tasks.keeping import lineage
from egomill.tasks.lake import runs
from egomill.tasks.lake.tables import Lake, one_of
from egomill.tasks.lake.tracking import Tracker
from egomill.tasks.media import stills, video, views
from egomill.tasks.training import gate

LABELS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "haarpsi": "HaarPSI",
    "lpips": "LPIPS",
    "clip_i": "CLIP-I",
    "fvd": "FVD",
    "pa_mpjpe": "PA-MPJPE, mm",
    "clip_score": "CLIPScore",
}
REGIONS = {"all": "", "hole": " hole", "moved": " moved", "hand": " hands", "first": " first frame", "after": " after it"}
GIVEN = (
    "psnr.hand",
    "psnr.first",
    "psnr.after",
    "ssim.first",
    "ssim.after",
)  # of methods that look at hands, or are given their first frames
LOWER = ("lpips", "fvd", "pa_mpjpe")  # where less is better
FAILURES = 200  # rows shown


def render(
    lake: Lake,
    tracker: Tracker | None,
    adapter: str,
    out: Path | str,
    run_id: str = "",
    clips: int = 24,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Write the page to `out` and return it.

    `adapter`: a spec ("egox@v3", "egox@candidate"; "" is whatever was generated last, or the base); `run_id`: the run the footer names
    ("" is the newest); `clips`: at most so many held-out clips are shown. ValueError where the lake has no run.
    """
    history = runs.history(lake, limit=1000)
    run = next((r for r in history if run_id in ("", r["run_id"])), None)
    if run is None:
        raise ValueError(f"no run {run_id!r} in {lake.uri}" if run_id else f"no run in {lake.uri} yet")
    spec = _spec(lake, tracker, adapter)
    scored = set(lake.read("scores", ["adapter"])["adapter"].to_pylist())
    variants = {name: split(name)[1].replace("-", " ") for name in sorted(scored) if spec and name.startswith(f"{spec}+")}
    shown = [name for name in ("prior", "sparse", "codec", "base", *variants, spec) if name]
    comparison = gate.compare(lake, list(dict.fromkeys(shown)), pairs=_pairs(spec, variants))
    held_out, hidden = _held_out(lake, shown, clips)
    failures = sorted(lake.read("failures").to_pylist(), key=lambda f: (f["stage"], f["key"]))
    metrics = [_metric(key) for key in _metric_keys(comparison)]
    names = {**gate.REFERENCES, **variants, spec: spec if spec != "base" else gate.REFERENCES["base"]}
    drawn = []
    for row in held_out:
        drawn.append(_clip(lake, row, shown, names))
        progress(len(drawn), len(held_out))
    page = _template().render(
        title=f"Egomill: {spec or 'data'} ({run['profile']['name']})",
        summary=_summary(run, spec, held_out, hidden),
        run=run,
        comparison=comparison if comparison["n_clips"] else None,
        names=names,
        metrics=metrics,
        best=_best(comparison),
        pairs=_drawn(comparison, metrics),
        split_note="",
        clips=drawn,
        hidden=hidden,
        stages=runs.stage_table(lake),
        head_scale=_head_scale(lake),
        failures=[{**f, "meaning": REASONS.get(f["reason"], ""), "summary": _last_line(f["detail"])} for f in failures[:FAILURES]],
        more_failures=max(0, len(failures) - FAILURES),
        lineage=_lineage(lake, tracker, spec),
    )
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def glance(lake: Lake, adapter: str, clips: int = 3) -> str:
    """Middle frames of a few held-out clips, exo views, filled prior where there is one, what the adapter `adapter` ("egox@v3") made,
    truth, as one picture that carries itself (a data URI; "" where it made nothing).
    """
    found: dict[str, list[Any]] = defaultdict(list)
    for row in _held_out(lake, [adapter], clips)[0]:
        key, middle = row["clip_id"], row["frames"] // 2
        made = {r["adapter"]: r["video"] for r in lake.rows("generations", [key], ["clip_id", "adapter", "video"])}
        if adapter in made:
            for number, view in enumerate(views.of(row)):
                found[f"exo {number + 1}" if row["more_views"] else "exo"].append(views.read_exo(view)[middle])
            for prior in lake.rows("priors", [key], ["video", "valid"]):
                found["prior"].append(views.read_prior(row, prior)[2][middle])
            found[adapter].append(video.decode(made[adapter])[middle])
            found["truth"].append(views.read_ego(row)[middle])
    if adapter not in found:
        return ""
    stacked = {name: np.stack(frames) for name, frames in found.items() if len(frames) == len(found[adapter])}
    return stills.data_uri(stills.png(stills.contact_sheet(stacked, range(len(stacked[adapter])))), "image/png")


def _template() -> Any:
    escape = {"autoescape": select_autoescape(["j2", "html"]), "finalize": _shown}
    environment = Environment(loader=PackageLoader("egomill.tasks.pages"), trim_blocks=True, **escape)
    return environment.get_template("report.html.j2")


def _shown(value: Any) -> Any:
    """Texts as `plain` has them; pictures and videos, which are text too, whole."""
    return plain(value, most=None if value.startswith("data:") else 20_000, lines=True) if type(value) is str else value


def _spec(lake: Lake, tracker: Tracker | None, adapter: str) -> str:
    if adapter and adapter != "base":
        if tracker is None:
            raise ValueError(f"to find adapter {adapter!r} a tracker is needed")
        return tracker.find(adapter).spec
    made = lake.read("generations", ["adapter"])["adapter"].to_pylist()
    trained = sorted({split(a)[0] for a in made if a != "base"}, key=lambda a: int(a.rpartition("@v")[2]))
    return "base" if adapter == "base" or (made and not trained) else trained[-1] if trained else ""


def _pairs(spec: str, variants: Iterable[str]) -> list[tuple[str, str]]:
    if spec in ("", "base"):
        return [(spec, "prior"), (spec, "sparse")] if spec else []
    return [(spec, "base"), (spec, "prior"), (spec, "sparse"), ("base", "prior"), *((spec, variant) for variant in variants)]


def _held_out(lake: Lake, shown: list[str], limit: int) -> tuple[list[dict], int]:
    """Clips of the page, and how many are left out: held out, with a prior where there are any; those with generations first, and one of
    every take before a second of any."""
    generated = set(lake.read("generations", ["clip_id"], one_of("adapter", shown))["clip_id"].to_pylist())
    with_prior = set(lake.read("priors", ["clip_id"])["clip_id"].to_pylist())
    rows = lake.read("clips", where="chosen AND split <> 'train'").to_pylist()
    seen: Counter = Counter()
    ranked = []
    for row in sorted((r for r in rows if not with_prior or r["clip_id"] in with_prior), key=lambda r: (r["split"], r["clip_id"])):
        ranked.append((row["clip_id"] not in generated, seen[row["take_uid"]], len(ranked), row))
        seen[row["take_uid"]] += 1
    ranked.sort(key=lambda r: r[:3])
    return [row for *_, row in ranked[:limit]], max(0, len(ranked) - limit)


def _clip(lake: Lake, clip: dict, shown: list[str], names: dict[str, str]) -> dict:
    key, fps = clip["clip_id"], clip["fps"]
    truth, seen = views.read_ego(clip), views.of(clip)
    made = {r["adapter"]: r for r in lake.rows("generations", [key], ["clip_id", "adapter", "video"]) if r["adapter"] in shown}
    depth = lake.rows("depth", [key], ["depth", "head_scale"])
    disc = views.ego_disc(clip)
    videos = [("exo" if len(seen) == 1 else view["exo_cam"], views.read_exo(view), len(seen) == 1) for view in seen]
    pictures = []
    generated = [(names[a], video.decode(made[a]["video"]), False) for a in shown if a in made]
    for prior in lake.rows("priors", [key], ["video", "valid"]):
        holes, valid, filled = views.read_prior(clip, prior)
        videos += [("prior", stills.show_holes(holes, valid | ~disc), False), ("prior, filled", filled, False)]
        pictures.append((f"prior's coverage, {valid[:, disc].mean():.0%} of the disc", stills.coverage_picture(valid, disc), False))
    hands = lake.rows("hands", [key], ["joints_exo"])
    if hands:
        name, exo, wide = videos[0]
        drawn = zip(exo, torch.from_numpy(unpack(hands[0]["joints_exo"])), strict=True)
        lens = views.exo_camera(clip)
        videos[0] = (f"{name}, hands", np.stack([stills.over(frame, pose_map(joints, lens)) for frame, joints in drawn]), wide)
    aligned = {r["source"]: r for r in lake.rows("alignments", [key], ["clip_id", "source", "centimetres", "degrees"])}
    for row in sorted(lake.rows("sparse", [key], ["clip_id", "source", "video", "valid", "pose"]), key=lambda r: r["source"]):
        holes, valid, _ = views.read_prior(clip, row)
        off = aligned[row["source"]]["centimetres"]
        told = f", off by {off:.1f} cm and {aligned[row['source']]['degrees']:.1f}°" if off and off > 0.01 else ""
        videos.append((f"sparse map, {row['source']}{told}", stills.show_holes(holes, valid | ~disc), False))
        videos.append((f"pose map, {row['source']}", video.decode(row["pose"]), False))
    if not pictures and not hands:  # what a video without a prior starts with decides what it becomes
        pictures = [(f"{name}, first frame", frames[0], False) for name, frames, _ in (*generated, ("truth", truth, False))]
    videos += [*generated, ("truth", truth, False)]
    if depth:
        scale = depth[0]["head_scale"]
        at_head = f"; the head at {scale:.2f} times its distance" if scale else ""
        picture = stills.depth_picture(unpack_depth(depth[0]["depth"])[clip["frames"] // 2])
        pictures.insert(0, (f"depth, middle frame{at_head}", picture, True))
    rows = [r for r in lake.rows("scores", [key], ["clip_id", "adapter", "metric", "value"]) if r["adapter"] in shown]
    scores = {a: {r["metric"]: r["value"] for r in rows if r["adapter"] == a} for a in shown}
    text = lake.rows("captions", [key], ["text"])
    return {
        "id": key,
        "take": clip["take_name"],
        "split": {"test": "held-out window", "unseen": "unseen take"}.get(clip["split"], clip["split"]),
        "camera": clip["exo_cam"],
        "start": clip["start"],
        "text": text[0]["text"] if text else "",
        "videos": [{"name": n, "wide": w, "src": stills.data_uri(video.for_browser(f, fps), "video/mp4")} for n, f, w in videos],
        "pictures": [{"name": n, "wide": w, "src": stills.data_uri(stills.png(p), "image/png")} for n, p, w in pictures],
        "scores": {a: v for a, v in scores.items() if v},
    }


def _head_scale(lake: Lake) -> dict:
    """What all clips' depth says of the wearer's head, and which say it a quarter off and more, the furthest first; empty without depth."""
    rows = lake.read("depth", ["clip_id", "head_scale"]).to_pylist()
    seen = {r["clip_id"]: r["head_scale"] for r in rows if r["head_scale"]}
    if not seen:
        return {}
    values = sorted(seen.values())
    off = {key: abs(math.log(value)) for key, value in seen.items()}
    apart = sorted(((key, value) for key, value in seen.items() if off[key] > math.log(1.25)), key=lambda row: (-off[row[0]], row[0]))
    told = {"seen": len(seen), "unseen": len(rows) - len(seen), "median": median(values), "low": values[0], "high": values[-1]}
    return {**told, "apart": apart}


def _metric_keys(comparison: dict) -> list[str]:
    """The page's columns: what never needs weights, and what was computed with them."""
    found = {m for values in comparison["means"].values() for m in values}
    return [m for m in (*gate.METRICS, *GIVEN) if m in found] + sorted(m for m in found if "." not in m)


def _metric(key: str) -> dict:
    kind, _, region = key.partition(".")
    return {"key": key, "label": LABELS.get(kind, kind) + REGIONS.get(region, f" {region}"), "digits": 2 if kind in ("psnr", "fvd") else 3}


def _best(comparison: dict) -> dict[str, str]:
    """Who stands out by metric: the best mean, the codec and variants of the adapter left out (they may have seen the truth)."""
    best = {}
    for metric in _metric_keys(comparison):
        means = {a: v[metric]["mean"] for a, v in comparison["means"].items() if metric in v and a != "codec" and not split(a)[1]}
        best[metric] = (min if metric.split(".")[0] in LOWER else max)(means, key=lambda a: means[a]) if means else ""
    return best


def _drawn(comparison: dict, metrics: list[dict]) -> dict:
    """Paired differences as a table, a row a metric, with the positions of their bars; each kind of metric has one scale."""
    found = {(p["a"], p["b"], p["metric"]): p for p in comparison["pairs"]}
    columns = list(dict.fromkeys((p["a"], p["b"]) for p in comparison["pairs"]))
    rows = []
    for metric in metrics:
        kind = metric["key"].split(".")[0]
        alike = [p for p in comparison["pairs"] if p["metric"].split(".")[0] == kind]
        scale = 74 / max([1e-9, *(abs(p["mean"]) + 2 * (p["se"] or 0) for p in alike)])
        cells = []
        for a, b in columns:
            p = found.get((a, b, metric["key"]))
            if p is None:
                cells.append(None)
                continue
            error = 2 * (p["se"] or 0)
            place = {"x": 80 + scale * p["mean"], "low": 80 + scale * (p["mean"] - error), "high": 80 + scale * (p["mean"] + error)}
            clear = p["se"] is not None and abs(p["mean"]) > error
            better = (p["mean"] > 0) != (kind in LOWER)
            cells.append({**p, **place, "tone": "soft" if not clear else "accent" if better else "warn"})
        rows.append({**metric, "cells": cells})
    return {"columns": columns, "rows": rows, "takes": comparison["n_takes"]} if columns else {}


def _lineage(lake: Lake, tracker: Tracker | None, spec: str) -> dict:
    try:
        trained = tracker is not None and "@v" in spec
        found = lineage.of_adapter(lake, tracker, spec) if trained and tracker else lineage.of_release(lake)
    except ValueError:  # no release yet
        return {}
    files = sum(len(t["files"]) for t in found["takes"])
    return {**found, "splits": Counter(c["split"] for c in found["clips"]), "files": files}


def _summary(run: dict, spec: str, held_out: list[dict], hidden: int) -> str:
    clips = run["profile"]["clips"]
    exo, ego = "×".join(map(str, clips["exo_size"])), clips["ego_size"]
    what = f"{len(held_out) + hidden} held-out clips of {clips['frames']} frames at {clips['fps']:g} fps, exo {exo}, ego {ego}×{ego}"
    by = f", by adapter {spec}" if "@" in spec else ""
    cameras = "one exocentric camera" if clips.get("views", 1) == 1 else f"up to {clips['views']} exocentric cameras"
    return f"Egocentric video from {cameras}{by}: {what}. Run {run['run_id']}, {run['started']:%d %B %Y, %H:%M} UTC."


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:160] if lines else ""

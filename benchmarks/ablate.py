"""What each part of a method is worth: the same release trained with and without it, paired by take.

    egomill simulate TAKES --takes 36 --seconds 2 --seed 11
    egomill rebuild TAKES --lake LAKE --profile local-exo2egosyn
    python benchmarks/ablate.py LAKE --profile local-exo2egosyn --seeds 3 \
        --other exo2egosyn.rays=false --other exo2egosyn.tokens=false --other exo2egosyn.frame=exo

Every setting is trained once a seed, and nothing that is trained already is trained again: the same command goes on where it was stopped.
A difference is taken clip by clip between trainings of one seed, averaged over seeds, then within takes; its standard error is over takes.
`seeds` is how far the mean differences of single seeds lie apart (their standard deviation): below that nothing is said.
"""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import fmean, stdev
from typing import Annotated

import typer

from egomill.flows.retrain import retrain
from egomill.tasks.lake.tables import Lake, one_of
from egomill.tasks.training import gate

METRICS = ("psnr.all", "psnr.first", "psnr.after", "psnr.hand", "psnr.moved", "ssim.all", "haarpsi.all")
FULL = "full"
Values = dict[tuple[str, int], dict[str, dict[str, float]]]  # (setting, seed) -> metric -> clip -> value


def main(
    lake: str,
    profile: str = "local-exo2egosyn",
    seeds: int = 3,
    other: Annotated[list[str] | None, typer.Option(help="A setting that is tried instead of the profile's, section.name=value.")] = None,
    also: Annotated[list[str] | None, typer.Option("--set", help="A setting of all of them.")] = None,
) -> None:
    specs = {}
    for seed in range(seeds):
        for setting in (FULL, *(other or [])):
            changed = [*(also or []), f"train.seed={seed}", *([] if setting == FULL else setting.split(","))]
            specs[setting, seed] = retrain.fn(lake, profile, changed)["adapter"]
            print(f"{setting}, seed {seed}: {specs[setting, seed]}", flush=True)
    tell(*scores(Lake(lake), specs), other or [], seeds)


def scores(lake: Lake, specs: dict[tuple[str, int], str]) -> tuple[Values, dict[str, str]]:
    """What is scored of the adapters, and the take of each held-out clip."""
    clips = lake.read("clips", ["clip_id", "take_uid"], "split <> 'train'")
    takes = dict(zip(clips["clip_id"].to_pylist(), clips["take_uid"].to_pylist(), strict=True))
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in lake.read("scores", None, one_of("adapter", ["base", "codec", *specs.values()])).to_pylist():
        if row["value"] is not None and row["clip_id"] in takes:
            found[row["adapter"]][row["metric"]][row["clip_id"]] = row["value"]
    print(f"{len(takes)} held-out clips of {len(set(takes.values()))} takes")
    references = {(name, seed): found[name] for name in ("base", "codec") for _, seed in specs}
    return {key: found[spec] for key, spec in specs.items()} | references, takes


def tell(values: Values, takes: dict[str, str], others: list[str], seeds: int) -> None:
    for metric in METRICS:
        if not values[FULL, 0].get(metric):
            continue
        own = [fmean(values[FULL, seed][metric].values()) for seed in range(seeds)]
        print(f"\n{metric}: {FULL} {fmean(own):.3f}, by seed {', '.join(f'{v:.3f}' for v in own)}")
        for setting in (*others, "base", "codec"):
            by_seed = [difference(values, setting, seed, metric) for seed in range(seeds)]
            over = gate.over_takes({clip: fmean(d[clip] for d in by_seed) for clip in by_seed[0]}, takes)
            apart = f", seeds ± {stdev(fmean(d.values()) for d in by_seed):.3f}" if seeds > 1 else ""
            better = f"better in {over['better'] * over['n']:.0f} of {over['n']} takes"
            print(f"  {FULL} - {setting:40} {over['mean']:+.3f} ± {over['se'] or math.nan:.3f}{apart}, {better}")


def difference(values: Values, setting: str, seed: int, metric: str) -> dict[str, float]:
    """Of every clip that both have: with everything, less with `setting`."""
    full, less = values[FULL, seed][metric], values[setting, seed][metric]
    return {clip: round(full[clip] - less[clip], 6) for clip in sorted(set(full) & set(less))}


if __name__ == "__main__":
    typer.run(main)

"""Is this adapter better? Paired comparison of scores over takes, and the rule by which the champion's alias moves.

Clips of one take show one room and one person, so they are no independent trials: differences are taken clip by clip, averaged within
takes, and the standard error is over takes. Means of several adapters are over the clips that all of them have, or they would not compare.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from egomill.tasks.lake.tables import Lake, intact, one_of
from egomill.tasks.lake.tracking import Adapter

METRICS = (
    "psnr.all",
    "psnr.hole",
    "psnr.moved",
    "ssim.all",
    "haarpsi.all",
    "haarpsi.hole",
    "haarpsi.moved",
)  # never need weights
REFERENCES = {
    "prior": "filled prior",
    "sparse": "filled sparse map",
    "codec": "codec alone",
    "base": "base, not tuned",
}  # what stands beside adapters in `scores`

Values = dict[str, dict[str, dict[str, float]]]  # adapter -> metric -> clip -> value


def compare(lake: Lake, adapters: Sequence[str], split: str | None = None, pairs: Iterable[tuple[str, str]] | None = None) -> dict:
    """Means and paired differences of `adapters` (specs, "base", "prior", "codec") over the held-out clips of `split` (None: all).

    Returns {adapters, n_clips, n_takes, means: {adapter: {metric: {mean, se, n}}}, pairs: [{a, b, metric, mean, se, n, better}],
    not_computed: {metric: why}}; n counts takes, se is None for one take; `better` is the share of takes where a > b. `pairs` defaults to
    the last adapter against each other one. Damaged where a score is not what was committed.
    """
    takes = _takes(lake, split)
    rows = [row for row in lake.read("scores", None, one_of("adapter", adapters)).to_pylist() if row["clip_id"] in takes]
    for row in rows:
        intact("scores", row)
    values: Values = defaultdict(lambda: defaultdict(dict))
    why: dict[str, str] = {}
    for row in rows:
        if row["value"] is None:
            why.setdefault(row["metric"], row["why"])
        else:
            values[row["adapter"]][row["metric"]][row["clip_id"]] = row["value"]
    present = [a for a in adapters if a in values]
    metrics = list(dict.fromkeys([*METRICS, *sorted({m for a in present for m in values[a]})]))
    means: dict[str, dict[str, dict]] = {a: {} for a in present}
    clips: set[str] = set()
    for metric in metrics:
        having = [a for a in present if metric in values[a]]
        common = set.intersection(*(set(values[a][metric]) for a in having)) if having else set()
        clips |= common
        for a in having:
            if common:
                means[a][metric] = over_takes({c: values[a][metric][c] for c in common}, takes)
    wanted = list(pairs) if pairs is not None else [(present[-1], b) for b in present[:-1]]
    differences = []
    for a, b in wanted:
        for metric in metrics:
            common = set(values[a][metric]) & set(values[b][metric])
            if common:
                over = over_takes({c: values[a][metric][c] - values[b][metric][c] for c in common}, takes)
                differences.append({"a": a, "b": b, "metric": metric, **over})
    computed = {m for a in present for m in values[a]}
    return {
        "adapters": present,
        "n_clips": len(clips),
        "n_takes": len({takes[c] for c in clips}),
        "means": means,
        "pairs": differences,
        "not_computed": {m: w for m, w in sorted(why.items()) if m not in computed},
    }


def decide(lake: Lake, candidate: Adapter, champion: Adapter | None, metric: str = "psnr.all", errors: float = 1.0) -> tuple[bool, str]:
    """Whether `candidate` should become champion, and why: it has to score better on the same held-out clips by more than `errors` standard
    errors. The first adapter has to beat the un-tuned base; one that was rolled back does not
    come back by itself. Without anything to compare a champion stays champion.
    """
    against = champion.spec if champion else "base"
    if against == candidate.spec:
        return False, "it is the champion"
    if "rolled_back" in candidate.tags:
        return False, f"rolled back {candidate.tags['rolled_back']}"
    found = compare(lake, [against, candidate.spec])["pairs"]
    pair = next((p for p in found if p["metric"] == metric), None)
    if pair is None:
        return champion is None, f"no held-out clip has {metric} of both it and {against}"
    better = pair["mean"] > errors * (pair["se"] or 0.0)
    error = "one take" if pair["se"] is None else f"± {pair['se']:.3f}, {pair['n']} takes"
    return better, f"{metric} {pair['mean']:+.3f} ({error}) against {against}"


def _takes(lake: Lake, split: str | None) -> dict[str, str]:
    where = "split <> 'train'" if split is None else one_of("split", [split])
    clips = lake.read("clips", ["clip_id", "take_uid"], where)
    return dict(zip(clips["clip_id"].to_pylist(), clips["take_uid"].to_pylist(), strict=True))


def over_takes(values: dict[str, float], takes: dict[str, str]) -> dict:
    """Mean over takes of the takes' means, its standard error, the number of takes, and the share of them above zero."""
    by_take: dict[str, list[float]] = defaultdict(list)
    for clip, value in sorted(values.items()):
        by_take[takes[clip]].append(value)
    means = [sum(v) / len(v) for v in by_take.values()]
    n, mean = len(means), sum(means) / len(means)
    se = math.sqrt(sum((m - mean) ** 2 for m in means) / (n - 1) / n) if n > 1 else None
    return {"mean": mean, "se": se, "n": n, "better": sum(m > 0 for m in means) / n}

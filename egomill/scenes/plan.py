"""What the person does: a seeded, endless list of small deeds at the table, flattened into smooth tracks that can be read at any time.

Tracks are keyframes joined by minimum-jerk moves, so positions, velocities and accelerations are continuous and any instant can be
asked for without simulating what came before it.
"""

from dataclasses import dataclass, field

import numpy as np

DEEDS = ("move", "lift", "look", "slide")


@dataclass
class Track:
    """Keyframes (time, vector); between two of them a minimum-jerk move, before and after them the end values."""

    times: list[float] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)

    def key(self, time: float, value) -> None:
        """Append a keyframe; times must not fall."""
        self.times.append(max(time, self.times[-1] + 1e-3) if self.times else time)
        self.values.append(np.asarray(value, float))

    def hold(self, time: float) -> None:
        """Stay at the last value until `time`."""
        self.key(time, self.values[-1])

    def at(self, time: float) -> np.ndarray:
        k = int(np.searchsorted(self.times, time, side="right")) - 1
        if k < 0:
            return self.values[0]
        if k + 1 >= len(self.times):
            return self.values[-1]
        u = (time - self.times[k]) / (self.times[k + 1] - self.times[k])
        return self.values[k] + (self.values[k + 1] - self.values[k]) * (u * u * u * (10 - 15 * u + 6 * u * u))


@dataclass(frozen=True)
class Deed:
    """One handling of one item, from the reach at `start` to the retreat at `end`; the item is in the hand in [grasp, release]."""

    name: str
    item: int
    hand: int  # 0 left, 1 right
    start: float
    grasp: float
    release: float
    end: float
    source: np.ndarray  # item's place on the table before, table frame (x along, y away from the person, metres)
    target: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Tracks in the table frame: x along the person's edge, y from that edge across the table, z above the table top."""

    deeds: tuple[Deed, ...]
    root: Track  # x of the feet
    hands: tuple[Track, Track]  # x, y, z of the grip, its radius, curl of the fingers 0..1
    gaze: Track  # x, y, z looked at
    items: tuple[Track, ...]  # x, y, z of the items' feet


def make_plan(rng: np.random.Generator, places: np.ndarray, radii: np.ndarray, heights: np.ndarray, length: float, until: float) -> Plan:
    """Deeds until the time `until` (s). places [K, 2]: items on a table `length` metres long; radii, heights [K] of the items.

    The deeds are drawn one after the other, so a larger `until` only appends.
    """
    places = places.copy()
    root, gaze, hands = Track(), Track(), (Track(), Track())
    items = tuple(Track() for _ in places)
    for track, place in zip(items, places, strict=True):
        track.key(0.0, (*place, 0.0))
    x = float(np.clip(places[0, 0] + rng.uniform(-0.3, 0.3), -length / 2 + 0.3, length / 2 - 0.3))
    root.key(0.0, (x,))
    gaze.key(0.0, (x, 0.25, 0.0))

    for hand in (0, 1):
        hands[hand].key(0.0, _rest(rng, hand, x))
    deeds: list[Deed] = []
    time = float(rng.uniform(0.0, 0.4))
    last = -1
    while time < until:
        near = [k for k in range(len(places)) if abs(places[k, 0] - x) < 0.75 and places[k, 1] < 0.42 and k != last]
        near = near or [int(np.abs(places[:, 0] - x).argmin())]
        item = last = int(rng.choice(near))
        name = str(rng.choice(DEEDS, p=(0.45, 0.15, 0.25, 0.15)))
        source = places[item].copy()
        target = _free_place(rng, places, radii, item, length) if name in ("move", "slide") else source
        stand = float(np.clip((source[0] + target[0]) / 2 + rng.uniform(-0.06, 0.06), -length / 2 + 0.2, length / 2 - 0.2))
        hand = int(source[0] + target[0] > 2 * stand) if abs(source[0] - stand) > 0.08 else int(rng.random() < 0.6)
        walk = 0.25 + 0.9 * abs(stand - x)
        grip_z = min(heights[item] * 0.55, heights[item] - 0.02)
        lift = {"move": rng.uniform(0.1, 0.22), "lift": rng.uniform(0.2, 0.35), "look": rng.uniform(0.3, 0.4), "slide": 0.004}[name]
        grasp = time + walk + float(rng.uniform(0.45, 0.65))
        knots = _knots(rng, name, source, target, stand, lift)
        release = grasp + 0.12 + knots[-1][0]
        end = release + 0.12 + float(rng.uniform(0.35, 0.5))

        root.hold(time)
        root.key(time + walk + 0.2, (stand,))
        mine, other = hands[hand], hands[1 - hand]
        other.hold(time)
        other.key(time + walk + 0.3, _rest(rng, 1 - hand, stand))
        gaze.hold(time)
        gaze.key(time + 0.35, (*source, 0.05))
        mine.hold(time + 0.3 * walk)
        _carry((mine, items[item], gaze), source, knots, grasp, grip_z, float(radii[item]))
        mine.key(release + 0.1, (*target, grip_z + 0.02, float(radii[item]) + 0.03, 0.25))
        mine.key(end, _rest(rng, hand, stand))
        if rng.random() < 0.15:  # looks up between two deeds
            gaze.key(end + 0.2, (stand + rng.uniform(-1.2, 1.2), 1.5, rng.uniform(-0.3, 0.1)))
            gaze.hold(end + 0.5)
            end += 0.5
        deeds.append(Deed(name, item, hand, time, grasp, release, end, source, np.asarray(target)))
        places[item], x = target, stand
        time = end + float(rng.uniform(0.0, 0.25))
    return Plan(tuple(deeds), root, hands, gaze, items)


def _rest(rng: np.random.Generator, hand: int, at: float) -> tuple:
    """A hand's state (see `Plan.hands`) beside the body of who stands at x."""
    x = at + (-0.2, 0.2)[hand] + rng.uniform(-0.04, 0.04)
    return x, rng.uniform(0.03, 0.12), rng.uniform(0.05, 0.14), 0.03, rng.uniform(0.25, 0.5)


def _knots(rng: np.random.Generator, name: str, source: np.ndarray, target: np.ndarray, stand: float, lift: float) -> list[tuple]:
    """Where a deed carries its item, as (seconds after the grasp, x y z)."""
    if name == "look" or name == "lift":
        height = np.array([stand + rng.uniform(-0.05, 0.05), 0.16 if name == "look" else source[1], lift])
        knots = [
            (0.7, height),
            (0.7 + rng.uniform(0.4, 0.9), height + rng.uniform(-0.02, 0.02, 3)),
            (1.5 + rng.uniform(0, 0.5), (*target, 0.0)),
        ]
        knots[2] = (max(knots[2][0], knots[1][0] + 0.6), knots[2][1])
    else:
        middle = (*(0.5 * (source + target)), lift)
        pace = 0.35 + 0.55 * float(np.linalg.norm(target - source)) + 0.6 * lift
        knots = [(pace, middle), (2 * pace, (*target, 0.0))]
    return knots


def _carry(tracks: tuple[Track, Track, Track], source: np.ndarray, knots: list[tuple], grasp: float, grip_z: float, radius: float) -> None:
    """Let hand, item and gaze follow a deed from its grasp on: the hand closes, and the item goes where the knots say."""
    hand, item, gaze = tracks
    hand.key(grasp - 0.12, (*source, grip_z + 0.02, radius + 0.025, 0.3))
    hand.key(grasp, (*source, grip_z, radius, 0.75))
    hand.hold(grasp + 0.06)
    item.hold(grasp + 0.06)
    for after, knot in knots:
        p = np.asarray(knot, float)
        hand.key(grasp + 0.06 + after, (p[0], p[1], p[2] + grip_z, radius, 0.75))
        item.key(grasp + 0.06 + after, p)
        gaze.key(grasp + 0.02 + after, (p[0], p[1], p[2] + 0.05))


def _free_place(rng: np.random.Generator, places: np.ndarray, radii: np.ndarray, item: int, length: float) -> np.ndarray:
    others = np.arange(len(places)) != item
    for _ in range(40):
        reach = rng.uniform(0.15, 0.5) * rng.choice([-1, 1])
        spot = np.array([places[item, 0] + reach, rng.uniform(0.12, 0.34)])
        clear = np.linalg.norm(places[others] - spot, axis=1) - radii[others] - radii[item]
        if abs(spot[0]) < length / 2 - 0.12 and clear.min() > 0.03:
            return spot
    return places[item].copy()

"""Words for what a person does: one caption a clip, and Ego-Exo4D style atomic descriptions."""

from egomill.scenes.plan import Deed
from egomill.scenes.world import Scene

_VERBS = {
    "move": "moves {item} to another place on {table}",
    "lift": "lifts {item} off {table} and puts it back",
    "look": "picks up {item} from {table} and looks at it closely",
    "slide": "slides {item} across {table}",
}


def deed_text(scene: Scene, deed: Deed) -> str:
    """What happens, without a subject: "moves a red can ... with the left hand"."""
    name = scene.names[deed.item]
    article = "an" if name[0] in "aeiou" else "a"
    done = _VERBS[deed.name].format(item=f"{article} {name}", table=scene.words[0])
    return f"{done} with the {('left', 'right')[deed.hand]} hand"


def caption(scene: Scene, start: float, stop: float) -> str:
    """One sentence for the span [start, stop] seconds: the deed that fills most of it, and the place."""
    overlap = [min(deed.end, stop) - max(deed.start, start) for deed in scene.plan.deeds]
    best = max(range(len(overlap)), key=overlap.__getitem__)
    if overlap[best] <= 0:
        return f"A person stands at {scene.words[0]} {scene.words[1]}."
    deed = scene.plan.deeds[best]
    others = [scene.names[k] for k in range(len(scene.names)) if k != deed.item][:2]
    return f"A person {deed_text(scene, deed)}, next to a {others[0]} and a {others[1]}, {scene.words[1]}.".replace(
        " a orange", " an orange"
    )


def descriptions(scene: Scene, seconds: float) -> list[dict]:
    """Atomic descriptions as in Ego-Exo4D (subject "C": the camera wearer), by time."""
    return [
        {
            "text": f"C {deed_text(scene, deed)}.",
            "timestamp": round(0.5 * (deed.grasp + min(deed.release, seconds)), 3),
            "subject": "C",
            "ego_visible": True,
            "best_exo": None,
            "unsure": False,
        }
        for deed in scene.plan.deeds
        if deed.grasp < seconds
    ]

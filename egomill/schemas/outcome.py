"""What can become of a row, as values: nothing that is wrong with the data is ever an exception across a stage."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

REASONS = {
    # takes: indices, paths and files
    "take_unreadable": "what the data set's indices say of the take cannot be read",
    "path_outside_root": "a path of the data set leads outside its folder",
    "file_unusable": "a file of the take is missing, is a folder, pipe or device, may not be read, or has an impossible size or name",
    "changed_while_read": "a file of the take changed while it was read",
    "duplicate_take_uid": "two takes carry one uid",
    "split_invalid": "the take's official split is no split, or indices contradict one another",
    "descriptions_invalid": "the take's text annotations are malformed, or lie outside its time",
    # takes: videos
    "no_exo_video": "no exo camera's video is there",
    "no_ego_video": "the Aria RGB video is missing",
    "video_undecodable": "a video cannot be opened or decoded",
    "video_too_large": "a video declares pictures too large to be decoded",
    "video_geometry": "a video is to be turned or stretched for show, or its pictures are of a shape that its camera does not take",
    "video_timing": "a video's frames are not shown one after the other at an even, sensible rate from zero on",
    "video_frozen": "a video shows one picture from beginning to end",
    "frame_counts_disagree": "videos of one take differ in length",
    # takes: poses and lenses
    "no_camera_pose": "the camera_pose annotation is missing or unreadable",
    "calibration_invalid": "intrinsics, distortion or lens calibration are missing or impossible",
    "exo_camera_moves": "an exo camera has several poses, and is taken to be fixed",
    "rotation_invalid": "a rotation is not orthonormal or is a reflection",
    "pose_gaps": "ego poses are missing, null or not finite beyond what may be interpolated",
    "pose_jumps": "the ego pose leaps between frames",
    "pose_units": "head and exo cameras are too near or too far from one another for metres",
    "poses_disagree": "there are more poses than frames, or far fewer",
    "forgotten": "the take was withdrawn with `egomill forget`",
    # takes: depth on disk
    "depth_sidecar_invalid": "the depth files on disk are of a wrong shape, kind or number",
    # clips
    "too_short": "the take has no window of the recipe's length",
    "no_window": "no window of the take passed the checks",
    # hands
    "hands_invalid": "hand annotations or files are malformed, in another unit, or of another clip",
    "no_hands": "no hand is known in enough of the clip's frames",
    "scale_unreliable": "the hands' surface does not tell by which factor depth becomes metres",
    "hands_unaligned": "the hands seen from outside and from the head fit no motion between the two cameras that can be believed",
    # derived rows
    "upstream": "an earlier stage has no row for this clip",
    "no_depth_estimator": "no depth lies on disk and no estimator's weights are configured",
    "depth_empty": "too little of the depth is known or finite",
    "depth_scale": "the depth of the wearer's head is far from its known distance: another unit, inverse depth, or another clip's depth",
    "alignment_failed": "the affine depth fit has too few static pixels or no positive scale",
    "prior_empty": "the rendered prior covers less of the ego view than the recipe asks for",
    "caption_failed": "the captioning endpoint gave no usable answer",
    "generation_failed": "the model gave frames that are not finite",
}

FAULTS = {  # reasons of failed rows, beside the names of exceptions that a worker raised
    "Timeout": "the row took longer than resources.timeout, timeouts and timeout_per_second allow; the detail is where it hung",
    "Damaged": "a row that it is made from is not what was committed: `egomill repair` has that one made again",
    "WorkerDied": "the process died while it worked on the row: a crash, or out of memory",
}


@dataclass(frozen=True)
class Rejected:
    """The data is bad: expected, kept as a row with its reason, tried again only when the data or the check changes."""

    reason: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"{self.reason!r} is no documented reason; add it to schemas/outcome.py")


@dataclass
class Report:
    """What a stage did with its inputs. `inputs == outputs + rejected + failed` holds when it returns (`balanced`)."""

    stage: str
    inputs: int = 0
    outputs: int = 0
    rejected: int = 0
    failed: int = 0
    computed: int = 0  # rows made by this run; the rest of `outputs` were current already
    retired: int = 0  # rows whose input is no more
    seconds: float = 0.0
    reasons: Counter = field(default_factory=Counter)

    @property
    def balanced(self) -> bool:
        return self.inputs == self.outputs + self.rejected + self.failed

    def to_dict(self) -> dict:
        return {**self.__dict__, "reasons": dict(self.reasons), "balanced": self.balanced}


class StageFailed(RuntimeError):
    """More rows failed through our own fault than the profile allows; args[0] is the report. All that succeeded is committed."""

"""A profile is a file of settings: frozen, validated, complete. Nothing below reads the environment.

`Profile.load("local", ["depth.momentum=0.9"])` reads `egomill/profiles/local.toml` (or a path to a TOML file) and applies overrides. An
unknown name or key is an error that names its nearest neighbour. Each stage gets its own section, and that section alone enters its
rows' fingerprints.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

PROFILES = Path(__file__).parent.parent / "profiles"
STAGES = ["takes", "clips", "depth", "priors", "directions", "captions", "hands", "scales", "ego_hands", "alignments", "sparse"]
STAGES += ["latents", "generations", "scores"]
Source = Literal["calibrated", "annotated", "jittered", "predicted"]


class Section(BaseModel):
    """A part of a profile: frozen, and it refuses names that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ingest(Section):
    """How tolerant reading a take is."""

    max_pose_gap: int = Field(default=3, ge=0)  # frames that may be interpolated between known poses
    min_pose_coverage: float = Field(default=0.9, ge=0, le=1)  # share of a take's frames whose head pose is known
    max_step: float = 0.5  # metres the head may move between two frames
    frame_slack: int = Field(default=2, ge=0)  # videos of one take may differ by so many frames (the common part is used)
    allow: tuple[str, ...] = ()  # folders outside of the data sets that links of theirs may lead to; no part of fingerprints

    @field_validator("allow")
    @classmethod
    def _absolute(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for place in given:
            if not Path(place).is_absolute():
                raise ValueError(f"{place!r} is no absolute path: a run may have another working folder")
        return given


class Clips(Section):
    """Which windows of which cameras become clips, and at what size."""

    frames: int = 9  # tn + 1, t being the frames of a latent frame of the base: 4n + 1
    fps: float = 10.0  # frames a second of the clip
    exo_size: tuple[int, int] = (224, 128)  # width, height in px, multiples of the base's token: 16
    ego_size: int = 128  # px, square
    hop: float = 1.0  # seconds between window starts
    exo_cameras: int = Field(default=1, ge=1)  # the best so many views of a window become clips of their own
    views: int = Field(default=1, ge=1)  # the best so many views of a window in one clip, by azimuth around the wearer
    max_per_take: int = Field(default=0, ge=0)  # 0: no limit
    skip_covered: bool = True  # leave out windows in which something covers the lens (take separators, who passes close by)
    undistort: bool = False  # exo view as a pinhole picture
    min_overlap: float = 0.15  # of the ego frustum seen by the exo camera
    min_motion: float = 0.0  # of the pictures (kernels/quality.py: motion)
    min_sharpness: float = 0.0  # of the pictures (kernels/quality.py: sharpness)
    max_bad_exposure: float = 0.9  # fraction of pixels that are black or blown
    train: int = 0  # clips of split train at most; 0: all
    test: int = 0  # of split test: windows of training takes
    unseen: int = 0  # of split unseen: takes that are held out
    test_fraction: float = 0.1  # windows of training takes that are held out
    unseen_fraction: float = 0.2  # takes that are held out, where the release has no split
    split_seed: int = 0  # by which windows and takes are held out
    # "official": the data set's, else shares of takes. The others cut H2O as Exo2Ego does (tasks/media/h2o.py: unseen).
    splits: Literal["official", "actions", "objects", "scenes", "subjects"] = "official"

    @model_validator(mode="after")
    def _sizes(self) -> Clips:
        if min(self.frames, *self.exo_size, self.ego_size) < 1:
            raise ValueError("a clip has a positive number of frames, and sides of a positive number of px")
        if self.views > 1 and self.exo_cameras > 1:
            raise ValueError("clips.views puts views of a moment into one clip, clips.exo_cameras into several: one of them has to be 1")
        return self


class Depth(Section):
    """Which estimators make a clip's depth, and what of it is believed. An empty revision stands for the weights' own digest."""

    monocular: str = "sidecar"  # "sidecar", or a folder / hub id of a depth network
    monocular_revision: str = ""
    temporal: str = "static-median"  # "static-median", "none", or a folder / hub id of a video depth network
    temporal_revision: str = ""
    mask: str = "sidecar-or-background"  # "background", "none", or a folder / hub id of a segmentation network
    mode: Literal["robust", "momentum", "peer"] = "robust"  # how the temporal depth is fitted to the metric one (kernels/depth.py)
    momentum: float = Field(default=0.99, ge=0, le=1)  # of mode "momentum", from frame to frame
    height: int = 224  # px of the stored depth; width follows the exo picture
    relative_error: float = 1e-3  # that storing depth may cost
    min_known: float = 0.2  # share of pixels whose depth is known
    scale: Literal["as-is", "landmarks"] = "as-is"  # "landmarks": training clips by what their true ego frames show at rest
    min_head_scale: float = Field(default=0.5, ge=0, allow_inf_nan=False)  # depth of the head over its known distance, before `scale`
    max_head_scale: float = Field(default=2.0, gt=0, allow_inf_nan=False)  # a clip outside of these two is rejected


class Priors(Section):
    """How the ego prior is drawn."""

    accumulate: bool = True  # one background cloud for the clip, instead of one a frame
    edge: float = 0.1  # relative depth range in a 5x5 window above which a point is dropped
    min_coverage: float = 0.02  # share of the lens' disc that a prior shows


class Directions(Section):
    """By which cameras the tokens' directions are computed."""

    geometry: Literal["calibrated", "egox-released"] = "calibrated"  # "egox-released": as the published adapter knows them


class Captions(Section):
    """Who describes a clip in words."""

    source: Literal["descriptions", "vlm"] = "descriptions"  # the data set's descriptions, or a vision-language model
    endpoint: str = ""  # OpenAI-compatible base URL
    model: str = ""  # by the endpoint's name
    exo_frames: int = 4  # pictures of the exo view that the model sees


class Model(Section):
    """The base model, and how it is conditioned."""

    base: str = "embedded"  # or a folder / hub id in the diffusers layout
    revision: str = ""  # of a hub id
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # in which the base's weights are held
    mask: Literal["paper", "egox-released", "coverage"] = "coverage"  # what the mask channels say of the prior (models/egox.py: masks)
    gga: Literal["paper", "egox-released", "off"] = "paper"  # the formula of geometry-guided attention
    lambda_g: float = 1.0  # its strength
    text_tokens: int = Field(default=64, ge=1)  # 512 for a base with an image branch


class Exo2EgoSyn(Section):
    """Sizes and choices of method exo2egosyn. The paper says none of them: all are our reading (models/exo2egosyn.py)."""

    align_width: int = Field(default=512, ge=16)  # channels of the network that predicts the first ego frame
    align_heads: int = Field(default=8, ge=1)
    align_depth: int = Field(default=8, ge=1)  # pairs of blocks
    ray_width: int = Field(default=256, ge=1)  # channels that a token's rays are encoded to
    metres: float = Field(default=1.0, gt=0)  # that count as one in a ray's moment
    drop: float = Field(default=0.1, ge=0, le=1)  # share of training samples without exo tokens, for guidance
    drop_views: float = Field(default=0.1, ge=0, le=1)  # share of views that training leaves out, so that fewer work too
    frame: Literal["align", "exo", "truth", "none"] = "align"  # what the video starts with; "truth": in training; to compare with
    tokens: bool = True  # false: without exo tokens, for comparison
    rays: bool = True  # false: without rays, for comparison
    refine: float = Field(default=0.0, ge=0, lt=1)  # noise level from which a first frame is trained to be made anew; 0: it stays as it is


class Hands(Section):
    """Who says where hands are."""

    source: Literal["annotated", "files", "landmarks"] = "annotated"  # the data set, .npz files beside it, or a landmark network
    labels: Literal["manual", "automatic", "both"] = "both"  # of Ego-Exo4D; with "both" a manual joint goes before an automatic one
    min_views: int = Field(default=3, ge=1)  # cameras by which a manual joint of Ego-Exo4D was triangulated
    min_frames: float = Field(default=0.5, gt=0, le=1)  # share of the clip's frames that show a hand
    palm: str = ""  # .tflite file of the palm detector
    landmark: str = ""  # .tflite file of the landmark network
    palm_sha256: str = ""  # that these files have to have; "": any
    landmark_sha256: str = ""


class EgoHands(Section):
    """The regressor of ego hands from the exo picture: its sizes and its training (models/ego_hands.py)."""

    sees: Literal["picture", "hands", "both"] = "picture"  # the exo picture (the paper), the hands as the exo camera has them, or both
    start: str = ""  # folder of a ViT that training starts with, whose sizes then count; "": none, with these:
    picture: int = 224  # px of the exo picture that it sees
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 512  # of the layers behind it
    steps: int = 2000
    batch: int = 4  # clips a worker and pass
    learning_rate: float = 1e-4


class GenEgo(Section):
    """Choices of method genego."""

    sources: tuple[Source, ...] = ("calibrated", "annotated", "jittered", "predicted")  # of alignments that are made
    trained: Source = "jittered"  # that training sees
    given: Source = "predicted"  # that generation sees
    regressor: str = ""  # folder of a trained regressor of ego hands; "": `nightly` trains one
    scale: Literal["as-is", "measured", "hands"] = "measured"  # depth as it is, without or with a look at what the hands say, or by them
    jitter: tuple[float, float] = (0.03, 4.0)  # metres and degrees (standard deviations) by which hands are moved in "jittered"
    reducer: Literal["trained", "released"] = "trained"  # of the pose map's latents to one channel; "released": random and fixed
    full: bool = False  # train the whole U-Net, without LoRA
    drop: float = Field(default=0.1, ge=0, le=1)  # share of training samples without text, for guidance
    pure: float = Field(default=0.0, ge=0, le=1)  # share of training samples at pure noise, where few-step sampling begins
    eta: float = Field(default=1.0, ge=0, le=1)  # of DDIM: noise anew at every step; 0: none
    same_noise: bool = False  # all frames of a clip begin with the same noise: less flicker
    sparse: bool = True  # false: without the sparse map, for comparison
    pose: bool = True
    text: bool = True

    @model_validator(mode="after")
    def _made(self) -> GenEgo:
        for name in ("trained", "given"):
            if (source := getattr(self, name)) not in self.sources:
                raise ValueError(f"genego.{name} is {source}, which genego.sources does not make")
        return self


class Train(Section):
    """How an adapter is trained. The global batch is batch · accumulate · workers."""

    method: str = "egox"  # a module of egomill/models with a METHOD, or the dotted name of one elsewhere
    rank: int = 64  # of the LoRA
    alpha: int = 64  # its scale is alpha / rank
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # ends of the names of the layers that it adapts
    learning_rate: float = 1e-3
    warmup: int = 20  # steps in which the rate rises
    weight_decay: float = 1e-4
    clip_norm: float = 1.0  # of the gradient
    batch: int = 2  # per worker and pass
    accumulate: int = Field(default=1, ge=1)  # passes per step
    steps: int = 300
    shift: float = 1.0  # of the flow-matching time
    workers: int = 2
    gpu: bool = False  # a GPU for every worker
    gradient_checkpointing: bool = False  # less memory, for another forward pass
    precision: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic (autocast); the adapter itself is float32
    sharding: Literal["ddp", "fsdp"] = "ddp"  # whole copies, or parameters cut up among the workers
    checkpoint_every: int = 100  # steps; what a crash may cost
    seed: int = 0


class Generate(Section):
    """How videos are sampled."""

    steps: int = Field(default=1, ge=1)  # of the sampler
    shift: float = 1.0  # of its noise levels
    guidance: float = 1.0  # classifier-free; 1: none
    scheduler: Literal["euler", "unipc"] = "euler"
    seed: int = 42
    keep_tokens: bool = False  # keep keys and values of the condition between steps, where the method can: faster, for memory; same videos


class Evaluate(Section):
    """Folders with the weights of metrics; where it is empty, the metric is not computed and says so."""

    lpips: str = ""
    clip: str = ""
    fvd: str = ""
    objects: str = ""
    fid: str = ""
    clip_score: str = ""  # a whole CLIP, in the transformers layout
    hands: str = ""  # palm_detection_full.tflite and hand_landmark_full.tflite


class Resources(Section):
    """What the actors of a stage take, how many there are, and how long they may. Nothing here enters a fingerprint.

    Stages are named as in reports, by the table that they make (`STAGES`). One that is not named takes one CPU. On a cluster this is also
    what places a stage: one that takes a part of a GPU runs where GPUs are, and one that takes no CPU leaves those to others. What
    training takes stands in `train` (workers, gpu).
    """

    shard: int = Field(default=8, ge=1)  # rows that an actor takes at a time, fewer where there are actors idle; what a crash may cost
    shards: int = Field(default=1000, ge=1)  # that one run of a stage makes at most: with more rows each holds more
    cpus: dict[str, float] = {}  # of one actor
    gpus: dict[str, float] = {}  # of one actor; 0.5: two share a device, and have to fit into its memory together
    actors: dict[str, int] = {}  # of one stage at a time, over all machines, at most; not named: as many as there is room and work for
    timeout: float = Field(default=1800.0, ge=0)  # seconds that one row may take before it is given up as hung; 0: no limit
    timeouts: dict[str, float] = {}  # of single stages
    timeout_per_second: float = Field(default=10.0, ge=0)  # on top of it, for every second that a take lasts (takes, clips)
    failure_threshold: float = Field(default=0.2, ge=0, le=1)  # share of failed (not rejected) rows above which a run fails
    attempts: int = 3  # of a failed row

    @field_validator("cpus", "gpus", "actors", "timeouts")
    @classmethod
    def _stages(cls, given: dict[str, float], about: ValidationInfo) -> dict[str, float]:
        for name, value in given.items():
            if name not in STAGES:
                raise ValueError(f"unknown stage {name}{_nearest(name, STAGES)}")
            if value < (about.field_name == "actors"):
                raise ValueError(f"{name} = {value:g}, and is to be {int(about.field_name == 'actors')} or more")
        return given


class Profile(Section):
    """All settings of a run."""

    name: str
    ingest: Ingest = Ingest()
    clips: Clips = Clips()
    depth: Depth = Depth()
    priors: Priors = Priors()
    directions: Directions = Directions()
    captions: Captions = Captions()
    model: Model = Model()
    exo2egosyn: Exo2EgoSyn = Exo2EgoSyn()
    hands: Hands = Hands()
    ego_hands: EgoHands = EgoHands()
    genego: GenEgo = GenEgo()
    train: Train = Train()
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()

    @staticmethod
    def load(name: str = "local", overrides: list[str] | tuple[str, ...] = ()) -> Profile:
        """A named profile or a TOML file, with `section.key=value` overrides (values as in TOML; bare words are strings).

        Errors: ValueError naming the unknown profile or key and the nearest known one.
        """
        path = Path(name) if name.endswith(".toml") else PROFILES / f"{name}.toml"
        if not path.is_file():
            raise ValueError(f"no profile {name!r}{_nearest(name, [p.stem for p in PROFILES.glob('*.toml')])}")
        settings: dict[str, Any] = {"name": path.stem, **tomllib.loads(path.read_text())}
        for override in overrides:
            key, equals, text = override.partition("=")
            section, dot, leaf = key.strip().partition(".")
            if not equals or not dot:
                raise ValueError(f"an override reads section.key=value, not {override!r}")
            settings.setdefault(section, {})[leaf] = _value(text)
        try:
            return Profile(**settings)
        except ValidationError as error:
            raise ValueError("; ".join(_explain(e) for e in error.errors())) from None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _explain(error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        parent: Any = Profile
        for part in where[:-1]:
            parent = parent.model_fields[part].annotation
        return f"unknown setting {'.'.join(where)}{_nearest(where[-1], list(parent.model_fields))}"
    return f"{'.'.join(where)}: {error['msg']}"

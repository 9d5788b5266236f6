"""The tables of the lake: columns, keys, and what every derived row says of its own making.

A key column carries Lance's primary-key metadata, without which concurrent merges double keys. JSON columns hold small, nested, rarely
queried things. The runner fills the columns of `MADE` (schemas/fingerprint.py):

    content      digest of the row's own values; of what it points to on disk it carries digests
    recipe       what made it, but for its inputs: a row of `recipes`
    inputs       contents of the rows it was made from, in the order in which its stage reads tables; of a take: what lies on disk
    fingerprint  digest(recipe, inputs)
    run_id       which run
"""

from __future__ import annotations

import pyarrow as pa

from .tensors import DEPTH, TENSOR

_KEY = {b"lance-schema:unenforced-primary-key": b"true"}
_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_L, _BYTES, _TIME = pa.list_(_S), pa.large_binary(), pa.timestamp("us", tz="UTC")


def _table(keys: str, /, **columns: pa.DataType) -> pa.Schema:
    fields = [pa.field(k, _S, nullable=False, metadata=_KEY) for k in keys.split()]
    return pa.schema(fields + [pa.field(name, kind) for name, kind in columns.items()])


def _derived(keys: str, /, **columns: pa.DataType) -> pa.Schema:
    return _table(keys, fingerprint=_S, run_id=_S, content=_S, recipe=_S, inputs=_L, **columns)


MADE = ("fingerprint", "run_id", "content", "recipe", "inputs")
NO_CONTENT = (*MADE, "seconds")  # how long something took comes out otherwise each time
FORMAT = 2  # of a lake: 1 held a clip's latents in one row (tasks/keeping/upgrade.py)
FOLDERS = {"latents": "tensors"}  # where a table does not lie in a folder of its name: `latents` is that of format 1
# Columns that came to a format: null in older rows, and no part of a row's content where they are null.
LATER = {"takes": ("hands",), "clips": ("more_views", "hands")}
# Columns that are no part of a row's content, but of what a row is made from whose stage reads them: hand annotations may come, or change,
# and nothing that does not look at hands is made again.
ASIDE = {"takes": ("hands",), "clips": ("hands",)}

# An exo view of a clip. The first one's columns are the clip's own.
VIEW: dict[str, pa.DataType] = {
    "exo_cam": _S,
    "exo_video": _S,
    "exo_camera": _S,  # JSON of Camera at the profile's exo picture: after crop and resize
    "exo_crop": pa.list_(_I),  # left, top, width, height in source pixels, then resized to the profile's exo size
    "exo_lens": _S,  # JSON of Camera of the source video where the recipe undistorts, else ""
    "T_world_exo": TENSOR,  # [4, 4] float64
    "depth_path": _S,
    "depth_kind": _S,
    "depth_focal": _F,  # of z-depth: the focal length that its network was told, over the lens' own
    "depth_files": _S,  # digest of the sidecar files of this view, "" without
    "overlap": _F,
    "motion": _F,
    "blur": _F,
    "exposure": _F,
    "why": _S,  # chosen, or why not
}


TABLES: dict[str, pa.Schema] = {
    # One row a take; its `content` is the digest of what later stages use of it.
    "takes": _derived(
        "take_uid",
        take_name=_S,
        layout=_S,  # "egoexo4d", "egox", "h2o" or "taco"
        root=_S,  # absolute folder; every path below is relative to it and stays inside it
        split=_S,  # the official one: train, val, test; "" or "held-out" where the data set gives none
        fps=_F,
        frames=_I,  # that all videos of the take have
        ego_video=_S,
        ego_camera=_S,  # JSON of Camera at the ego video's size (turned)
        lens_source=_S,  # "calibration file" or "typical lens"
        T_world_ego=TENSOR,  # [frames, 4, 4] float64, NaN where unknown; sensor (landscape) frame
        pose_coverage=_F,
        exo=_S,  # JSON {camera name: {video, camera, T_world_exo, depth: relative path or null, depth_kind, depth_focal}}
        left_out=_S,  # JSON {exo camera, or folder of videos of a smaller size: [reason, detail]}: not used, and why
        prior_video=_S,  # a prior that the data set shipped (comparison only), or ""
        files=_S,  # JSON {relative path: {sha256, bytes, mtime_ns}}
        task=_S,
        descriptions=_S,  # JSON [{text, timestamp}] in seconds of the take
        hands=_S,  # JSON of what says where hands are (tasks/media/hand_files.py), with a digest of its files; null where nothing does
    ),
    # One row a candidate window; `chosen` ones go on.
    "clips": _derived(
        "clip_id",  # take_uid.cam.start, of the first view
        take_uid=_S,
        take_name=_S,
        split=_S,  # train, test (held-out window of a training take), unseen (window of a held-out take)
        chosen=_B,
        why=_S,
        exo_cam=_S,
        start=_I,  # first source frame
        stride=_I,  # source frames per clip frame
        frames=_I,
        fps=_F,  # of the clip
        root=_S,
        exo_video=_S,
        ego_video=_S,
        videos=_S,  # digest of both videos' files
        exo_camera=_S,  # JSON of Camera at the profile's exo picture: after crop and resize
        exo_crop=pa.list_(_I),  # left, top, width, height in source pixels, then resized to the profile's exo size
        exo_lens=_S,  # JSON of Camera of the source video where the recipe undistorts, else ""
        ego_camera=_S,  # JSON of Camera at the profile's ego picture
        T_world_exo=TENSOR,  # [4, 4] float64
        T_world_ego=TENSOR,  # [F, 4, 4] float64
        depth_path=_S,
        depth_kind=_S,
        depth_focal=_F,  # of z-depth: the focal length that its network was told, over the lens' own
        depth_files=_S,  # digest of the sidecar files of this view, "" without
        overlap=_F,
        motion=_F,
        blur=_F,
        exposure=_F,
        pose_coverage=_F,
        task=_S,  # of the take
        description=_S,  # what annotators wrote for the window, one sentence after the other
        more_views=pa.list_(pa.struct(VIEW)),  # of the same moment, in order, after the first; null where there are none
        hands=_S,  # as of the take
    ),
    "depth": _derived(
        "clip_id",
        depth=DEPTH,  # [F, h, w] metres along the calibrated ray, at the depth recipe's size
        static=TENSOR,  # [F, h, w] bool
        alpha=TENSOR,  # [F] of D = 1 / (alpha / D_v + beta)
        beta=TENSOR,
        inliers=TENSOR,
        estimator=_S,  # names and revisions: monocular | temporal | mask
        known=_F,  # fraction of pixels with depth
        head_scale=_F,  # the depth of the wearer's head over its known distance: 1 is right; null where the head is never seen
    ),
    "priors": _derived("clip_id", video=_BYTES, valid=TENSOR, coverage=_F),
    "directions": _derived(
        "clip_id",
        exo_points=TENSOR,  # [f, h, w, 3] float32, world
        exo_valid=TENSOR,  # [f, h, w] bool
        ego_rays=TENSOR,  # [f, h, w, 3] float16, world, unit
        ego_valid=TENSOR,
        centres=TENSOR,  # [f, 3] float32, world
    ),
    "captions": _derived("clip_id", text=_S, source=_S),
    # Hands: 21 joints each (kernels/hands.py), left then right, metres, NaN where unknown.
    "hands": _derived(
        "clip_id",
        joints_exo=TENSOR,  # [F, 2, 21, 3] float32, in the exo camera's frame
        joints_ego=TENSOR,  # the true ones in the ego camera's (sensor) frame, where known cameras and annotations tell them, else null
        picture=TENSOR,  # [F, 3, S, S] uint8, the exo view as the regressor of ego hands sees it
        frames=_I,  # that show a hand
        estimator=_S,  # who said so: name and digest of weights
    ),
    "scales": _derived("clip_id", factor=_F, pixels=_I, spread=_F),  # from depth to metres by the hands' surface
    "ego_hands": _derived("clip_id regressor", joints_ego=TENSOR),  # predicted by the regressor of that digest
    "alignments": _derived(
        "clip_id source",  # calibrated, annotated, jittered or predicted
        T_ego_exo=TENSOR,  # [F, 4, 4] float64, known in every frame
        joints_ego=TENSOR,  # [F, 2, 21, 3] that the pose map draws
        residual=TENSOR,  # [F] m, NaN where nothing was fitted
        refused=_L,  # [F] why a frame's own fit was not believed (kernels/alignment.py), "" where it was
        weak=TENSOR,  # [F] bool: by one hand only
        exchanged=_B,  # left and right, in the whole clip
        centimetres=_F,  # of the ego camera's place off the calibrated one, median over frames; null where that is not known
        degrees=_F,  # of its direction
    ),
    "sparse": _derived("clip_id source", video=_BYTES, valid=TENSOR, pose=_BYTES, coverage=_F),
    "latents": _derived(
        # model: of the base; behind a slash, of which part of the clip's latents, where several stages make them.
        "clip_id model name",  # name: what of the clip it is, in the method's words (models/method.py): exo, prior, ego, text, ...
        names=_L,  # of all rows that the clip has of this model: where one is missing, all are made again
        tensor=TENSOR,  # float16: normalised latents [C, f, h, w], embeddings [tokens, dim], ...
    ),
    "generations": _derived("clip_id adapter", video=_BYTES, seed=_I, sampler=_S, seconds=_F),
    "scores": _derived("clip_id adapter metric", value=_F, why=_S),
    "failures": _table(
        "key stage",
        fingerprint=_S,
        recipe=_S,
        inputs=_L,
        run_id=_S,
        status=_S,  # rejected or failed
        reason=_S,
        detail=_S,
        attempt=_I,
        at=_TIME,
    ),
    "runs": _table(
        "run_id",
        flow=_S,
        started=_TIME,
        ended=_TIME,
        status=_S,
        profile=_S,  # JSON
        code=_S,
        environment=_S,  # JSON: versions of what was installed
        release_in=_S,
        release_out=_S,
        stages=_S,  # JSON [Report.to_dict()]
        detail=_S,
    ),
    "recipes": _table(
        "recipe",  # digest of the parts below
        stage=_S,
        created=_TIME,
        reads=_S,  # JSON [tables], in the order of the rows' `inputs`
        config=_S,  # JSON
        code=_S,  # JSON {module: hash of its syntax tree}
        weights=_S,
        columns=_S,  # the made table's
        constants=_S,  # JSON
    ),
    "releases": _table(
        "name",
        created=_TIME,
        run_id=_S,
        tables=_S,  # JSON {table: version}
        content=_S,  # JSON {table: digest of its rows' keys and contents}
        checks=_S,
        profile=_S,
        clips=_I,
        withdrawn=_TIME,  # when a take that it held was forgotten, or null
        why=_S,
    ),
    # Takes that were withdrawn: that and what followed, without a name or a value of theirs.
    "forgotten": _table(
        "take",  # digest of the take_uid
        at=_TIME,
        done=_TIME,  # null while it is under way
        run_id=_S,
        rows=_S,  # JSON {table: rows deleted}
        releases=_S,  # JSON {release that was withdrawn: why}
        adapters=_S,  # JSON [what was trained or scored on it]
        generations=_S,  # JSON {tainted adapter: its rows in generations}
    ),
}
KEYS: dict[str, tuple[str, ...]] = {
    name: tuple(f.name for f in schema if f.metadata and b"lance-schema:unenforced-primary-key" in f.metadata)
    for name, schema in TABLES.items()
}


def take_of(table: str, key: tuple[str, ...]) -> str:
    """The take_uid in a row's key; "" in tables that say nothing of takes. No uid holds a slash (tasks/media/sources.py)."""
    if table == "takes" or (table == "failures" and key[1] in ("takes", "clips")):
        return key[0].partition("#/")[0]  # UID#/PATH is how a second take of that uid is called
    return key[0].rsplit(".", 2)[0] if table == "failures" or KEYS[table][0] == "clip_id" else ""  # UID.CAMERA.START


LONG = ("latents",)  # of one value a row: what is read of them are names of rows, not columns
OPTIONAL = ("image",)  # names of rows that not every base makes; who reads others is not run without them
RELEASED = (  # what a release pins, parents first
    *("takes", "clips", "depth", "priors", "directions", "captions", "hands", "scales", "ego_hands", "alignments", "sparse"),
    "latents",
)


def columns(table: str) -> str:
    """The shape of a table, as recipes have it: what was added to a format later makes no row another."""
    return str(pa.schema([field for field in TABLES[table] if field.name not in LATER.get(table, ())]))


def silent(table: str, row: dict) -> tuple[str, ...]:
    """The columns that are no part of a row's content."""
    return (*NO_CONTENT, *ASIDE.get(table, ()), *(column for column in LATER.get(table, ()) if row.get(column) is None))


def as_stored(table: str, rows: list[dict]) -> list[dict]:
    """Rows as they come back from the table: every column, Arrow's types."""
    return pa.Table.from_pylist(rows, schema=TABLES[table]).to_pylist()

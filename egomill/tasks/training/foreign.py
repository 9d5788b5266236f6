"""A LoRA that was trained elsewhere made an adapter of ours: EgoX's published one, for instance.

Its file says nothing of how it is conditioned (mask, attention's bias, directions); whoever brings it does, by settings. What it says of
its scaling (PEFT's description, `.alpha` tensors, kohya's metadata) is honoured, or refused by name: our adapter changes every layer's
weight by exactly what the file means. Every tensor has to fit a layer of the base. Nothing is unpickled, and no weights of the base are
read but for their digest.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from egomill.models.method import of
from egomill.schemas.config import Profile
from egomill.schemas.fingerprint import file_sha256
from egomill.tasks.lake.tracking import Adapter, Tracker
from egomill.tasks.networks import bases
from egomill.tasks.training import adapters, sizes

# How trainers begin a layer's name: diffusers, PEFT, ComfyUI's and ai-toolkit's, DiffSynth.
PREFIX = re.compile(r"^(?:(?:base_model\.model|model\.diffusion_model|diffusion_model|transformer|pipe\.dit)\.)*")
KEY = re.compile(r"(?P<layer>.+?)\.(?:lora[._](?P<half>A|B|down|up)(?:\.(?P<adapter>[^.]+))?\.weight|(?P<alpha>alpha))")
HALF = {"A": "A", "down": "A", "B": "B", "up": "B"}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LEAST, MOST = 1e-7, 1e3  # what a layer's update may make of numbers of size 1; a base's own layer makes numbers of about that size again
PEFT_FILE = "adapter_config.json"

# What PEFT's description says of training alone; and the starts that left the base as it was.
OF_TRAINING = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "target_modules",
    "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "eva_config", "megatron_core", "qalora_group_size",
    "runtime_config",
}  # fmt: skip
STARTS = ("gaussian", "eva", "orthogonal")
# What a file's metadata say of alpha and rank, and words that may speak of a scale (kohya's and modelspec's records aside).
ALPHA = ("ss_network_alpha", "network_alpha", "lora_alpha", "alpha")
RANK = ("ss_network_dim", "network_dim", "lora_rank", "rank", "r")
SCALING = re.compile(r"alpha|scal|dora|rs_?lora", re.IGNORECASE)


def register(file: Path, profile: Profile, tracker: Tracker) -> Adapter:
    """Make a .safetensors file the next version of the profile's method, conditioned as the profile says: a LoRA, or a whole model as the
    method's authors release it. ValueError on what `read` and `Method.released` refuse.
    """
    own = _whole(file, profile)
    tensors, rank, alpha = ({}, 0, 0.0) if own else read(file, profile)
    origin = {"file": file.name, "file_sha256": file_sha256(file)}
    revision = bases.revision(profile.model)
    about = adapters.about(profile, revision, step=0, release="") | {"rank": rank, "alpha": alpha, **origin}
    config = {"r": rank, "lora_alpha": alpha, "target_modules": sorted({name.rsplit(".", 2)[0] for name in tensors})}
    name = of(profile).name
    with TemporaryDirectory() as folder:
        adapters.save(tensors, config, own, Path(folder), about)
        run = tracker.start(f"{name}-{file.stem}", origin)
        tracker.params(run, {"model": profile.model.model_dump(), "directions": profile.directions.model_dump()})
        tags = {**origin, "profile": profile.name, "base": revision, "sha256": adapters.sha256(folder)}
        try:
            adapter = tracker.register(name, folder, run, tags)
        except BaseException:
            tracker.end(run, "FAILED")
            raise
        tracker.end(run)
    return adapter


def _whole(file: Path, profile: Profile) -> dict[str, Tensor]:
    """The tensors of a whole model in the file, {} where it holds none, or the method knows of none."""
    released = of(profile).released
    try:
        with safe_open(file, "pt") as stored:
            names = list(stored.keys())
            if released is None or not any(".input_blocks." in name for name in names):
                return {}
            tensors = {name: stored.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return {}  # `read` says what is wrong with it
    if bad := [name for name, t in tensors.items() if t.dtype not in FLOATS or not t.isfinite().all()]:
        raise ValueError(f"{file}: {bad[0]} is whole, or not finite")
    try:
        return released(tensors, profile, sizes.transformer_config(profile))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read(file: Path, profile: Profile) -> tuple[dict[str, Tensor], int, float]:
    """(tensors by layer and half, rank, alpha) of a LoRA: every layer's weight changes by alpha / rank · B A.

    Layers may be named as diffusers, PEFT, Wan's own code or kohya's trainers name them. Where the file says nothing of its scaling, alpha
    is the rank. Where layers differ in scale or rank, the scale goes into B (float32) and zeros fill up the lesser ranks.

    ValueError naming file and tensor or setting where it is no safetensors file; a tensor is no half of a plain LoRA, or is there twice;
    the base has no such layer; a half is missing; a shape or the rank is another; numbers are whole, not finite, all nothing, or far too
    large; what the file says of its scaling cannot be read, is contradictory, or is nothing that a plain LoRA does.
    """
    known = _layers(profile)
    metadata, keys, halves, alphas = _opened(file, known)
    called = {layer: _source(key)[0] for (layer, _), key in keys.items()}
    told = _description(file, metadata, of_peft=any(key.startswith("base_model.") for key in keys.values()))
    ranks = _ranks(file, halves, known, told, called, free=bool(alphas))
    scales = _scales(file, metadata, told, called, ranks, alphas)
    _sizes(file, halves, scales)
    if len(set(scales.values())) == len(set(ranks.values())) == 1:
        rank = next(iter(ranks.values()))
        alpha = rank * next(iter(scales.values()))
    else:
        rank = alpha = max(ranks.values())
        halves = {layer: _folded(pair, scales[layer], rank) for layer, pair in halves.items()}
    return {f"{layer}.lora_{half}.weight": t for layer, pair in halves.items() for half, t in pair.items()}, rank, float(alpha)


Halves = dict[str, dict[str, Tensor]]  # by layer, A and B


def _opened(file: Path, known: dict[str, tuple[int, int]]) -> tuple[dict[str, str], dict[tuple[str, str], str], Halves, dict[str, float]]:
    """(metadata, the file's keys by layer and part, the matrices, the alphas by layer); layers as the base names them."""
    names = _elsewhere(len({n.split(".")[1] for n in known if n.startswith("blocks.")})) | {n: n for n in known}
    keys: dict[tuple[str, str], str] = {}
    halves: Halves = {}
    alphas: dict[str, float] = {}
    saved_as = set()  # PEFT's names of adapters
    try:
        with safe_open(str(file), "pt") as opened:
            metadata = opened.metadata() or {}
            for key in opened.keys():  # noqa: SIM118 (not a dictionary)
                source, part, name = _source(key)
                if not part:
                    raise ValueError(
                        f"{file}: {key} is no layer's lora_A.weight or lora_B.weight (or lora_down, lora_up, alpha). Only plain LoRA is "
                        "taken: merge DoRA, biases, differences of weights, LoHa or LoKr in the trainer, and extract a LoRA again"
                    )
                layer = names.get(source, source)
                if layer not in known:
                    raise ValueError(f"{file}: the base has no linear layer {layer} ({key})")
                if (layer, part) in keys:
                    raise ValueError(f"{file}: {keys[layer, part]} and {key} are of one layer: leave one of them out")
                keys[layer, part], tensor = key, opened.get_tensor(key)
                if part == "alpha":
                    alphas[layer] = _alpha(file, key, tensor)
                    continue
                if tensor.dtype not in FLOATS:
                    raise ValueError(f"{file}: {key} holds {str(tensor.dtype)[6:]}, and is to hold floating-point numbers: dequantise it")
                if not tensor.isfinite().all():
                    raise ValueError(f"{file}: {key} holds numbers that are not finite")
                saved_as.add(name)
                halves.setdefault(layer, {})[part] = tensor
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: {error}") from None
    if not halves:
        raise ValueError(f"{file} holds no tensor of a LoRA")
    if len(saved_as) > 1:
        raise ValueError(f"{file} holds several adapters ({', '.join(sorted(saved_as))}): save one of them alone")
    return metadata, keys, halves, alphas


def _source(key: str) -> tuple[str, str, str]:
    """(layer as the file names it, "A", "B", "alpha" or "" for another thing, PEFT's name of the adapter or "")."""
    match = KEY.fullmatch(PREFIX.sub("", key, count=1))
    if match is None:
        return key, "", ""
    return match["layer"], "alpha" if match["alpha"] else HALF[match["half"]], match["adapter"] or ""


def _alpha(file: Path, key: str, tensor: Tensor) -> float:
    value = float(tensor.double()) if tensor.numel() == 1 and not tensor.is_complex() else math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{file}: {key} is to be one number above 0, not {tensor.flatten()[:4].tolist()}")
    return value


def _ranks(file: Path, halves: Halves, known: dict[str, tuple[int, int]], told: dict, called: dict[str, str], free: bool) -> dict[str, int]:
    """{layer: rank}. All have that of the first, but where the file says otherwise: PEFT's patterns, or (`free`) an alpha to each layer."""
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in told.get(name, {}):
            if not any(_of_layer({pattern: True}, layer, False) for layer in called.values()):
                raise ValueError(f"{file}: {name} says something of {pattern}, and no layer of the file is called so")
    first = next((len(pair["A"]) for pair in halves.values() if "A" in pair and pair["A"].ndim), 0)
    ranks = {}
    for layer, pair in halves.items():
        wide, tall = known[layer]
        rank = _of_layer(told.get("rank_pattern", {}), called[layer], told.get("r", first))
        if free and not told and "A" in pair and pair["A"].ndim:
            rank = len(pair["A"])
        shapes = {half: tuple(tensor.shape) for half, tensor in sorted(pair.items())}
        if rank < 1 or shapes != {"A": (rank, wide), "B": (tall, rank)}:
            raise ValueError(f"{file}: {layer} has {shapes}, not A {(rank, wide)} and B {(tall, rank)}")
        ranks[layer] = rank
    return ranks


def _scales(
    file: Path, metadata: dict[str, str], told: dict, called: dict[str, str], ranks: dict[str, int], alphas: dict[str, float]
) -> dict[str, float]:
    """{layer: what B A is multiplied with}, from all that the file says of it, which has to agree."""
    said: dict[str, dict[str, float]] = {}
    if told:
        root = math.sqrt if told["use_rslora"] else float
        alpha = {layer: _of_layer(told["alpha_pattern"], called[layer], told["lora_alpha"]) for layer in ranks}
        said["PEFT's description"] = {layer: alpha[layer] / root(rank) for layer, rank in ranks.items()}
    if alphas:
        for layer in sorted(alphas.keys() ^ ranks.keys()):
            raise ValueError(f"{file}: {layer} has {'an alpha and no LoRA' if layer in alphas else 'no alpha, and other layers have one'}")
        said["its alpha tensors"] = {layer: alphas[layer] / rank for layer, rank in ranks.items()}
    for word, text in metadata.items():
        value = _number(text)
        if word in RANK and not math.isnan(value) and value not in ranks.values():
            raise ValueError(f"{file}: its metadata say {word} = {text}, and its layers have rank {max(ranks.values())}")
        if word in ALPHA:
            if not 0 < value < math.inf and not alphas:
                raise ValueError(f"{file}: its metadata say {word} = {text!r}, which is no number above 0")
            if 0 < value < math.inf and not any(math.isclose(value, alpha, rel_tol=4e-3) for alpha in alphas.values()):  # each has its own
                said[word] = {layer: value / rank for layer, rank in ranks.items()}
    (first, scales), *others = said.items() or [("", dict.fromkeys(ranks, 1.0))]
    for where, also in others:
        for layer, scale in scales.items():
            if not math.isclose(scale, also[layer], rel_tol=4e-3):  # of bfloat16
                raise ValueError(
                    f"{file}: {layer} is scaled by {scale:g} after {first}, by {also[layer]:g} after {where}: take out what is wrong"
                )
    return scales


def _sizes(file: Path, halves: Halves, scales: dict[str, float]) -> None:
    """Refuse an adapter that changes nothing, or by so much that nothing of the base is left (our reading: a thousand times over)."""
    largest = 0.0
    for layer, pair in halves.items():
        a, b = pair["A"].double(), pair["B"].double()
        gain = scales[layer] * ((a @ a.T) * (b.T @ b)).sum().clamp_min(0).sqrt().item() / math.sqrt(len(b))  # |B A| by two small products
        if not gain <= MOST:
            raise ValueError(f"{file}: {layer} makes numbers of size 1 into ones of size {gain:.3g}, more than {MOST:g}: no LoRA does")
        largest = max(largest, gain)
    if largest < LEAST:
        raise ValueError(f"{file}: it changes nothing: in every layer one of the halves is zero, or nearly (untrained?)")


def _folded(pair: dict[str, Tensor], scale: float, rank: int) -> dict[str, Tensor]:
    """The same change of the weight at scale 1 and a rank no less than before."""
    missing, a = rank - len(pair["A"]), pair["A"]
    b = pair["B"].to(torch.promote_types(pair["B"].dtype, torch.float32)) * scale
    pad = torch.nn.functional.pad
    return {"A": pad(a, (0, 0, 0, missing)), "B": pad(b, (0, missing))}


def _description(file: Path, metadata: dict[str, str], of_peft: bool) -> dict[str, Any]:
    """What PEFT's description of the adapter says, checked: {r (may be missing), lora_alpha, rank_pattern, alpha_pattern,
    use_rslora}; {} where there is none. It lies in the metadata, or (`of_peft`, and by PEFT's name of the file) beside it.
    """
    _others(file, metadata)
    where, text, beside = "lora_adapter_metadata", metadata.get("lora_adapter_metadata", "{}"), file.with_name(PEFT_FILE)
    if text == "{}" and (of_peft or file.name == "adapter_model.safetensors") and beside.is_file():
        where, text = PEFT_FILE, ""
    try:
        told = json.loads(text or beside.read_text(), object_pairs_hook=_once)
        if not isinstance(told, dict):
            raise TypeError(f"{text[:40]} is no object")
        told = _once([(key.removeprefix("transformer."), value) for key, value in told.items()])
        if told:
            _check(told)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{file}: {where} cannot be read: {error}") from None
    if of_peft and not told:
        raise ValueError(f"{file} is named as PEFT names it, which keeps the scaling in {PEFT_FILE}: put that beside it")
    return told


def _check(told: dict[str, Any]) -> None:
    """Complete PEFT's description with its defaults. ValueError naming what no plain LoRA does."""
    told.setdefault("rank_pattern", {})
    told.setdefault("alpha_pattern", {})
    told.setdefault("use_rslora", False)
    if "lora_alpha" not in told:
        raise ValueError("it says no lora_alpha")
    if told.get("r", 1) is None:
        del told["r"]
    for name, value in told.items():
        if name in ("r", "lora_alpha"):
            _positive(name, value, whole=name == "r")
        elif name in ("rank_pattern", "alpha_pattern"):
            told[name] = value = value or {}
            if not isinstance(value, dict):
                raise ValueError(f"{name} is {value!r}")
            for pattern, number in value.items():
                if not re.fullmatch(r"\^?[\w.]+\$?", pattern):
                    raise ValueError(f"{name} has {pattern!r}, and only names of layers or ends of them are taken")
                _positive(f"{name} of {pattern}", number, whole=name == "rank_pattern")
        elif name == "use_rslora":
            if not isinstance(value, bool):
                raise ValueError(f"use_rslora is {value!r}")
        elif name == "peft_type":
            if value != "LORA":
                raise ValueError(f"peft_type is {value!r}, and only LORA is taken")
        elif name == "init_lora_weights":
            if not (value is None or isinstance(value, bool) or value in STARTS):
                raise ValueError(f"init_lora_weights is {value!r}, which changed the base itself: convert it to a plain LoRA (PEFT's "
                                 "save_pretrained with path_initial_model_for_weight_conversion)")  # fmt: skip
        elif name not in OF_TRAINING and not (value is None or value is False or value in ({}, [], "none")):
            raise ValueError(f"{name} is {value!r}, which a plain LoRA has not: merge it in the trainer, and extract a LoRA again")


def _others(file: Path, metadata: dict[str, str]) -> None:
    """Refuse what the metadata say of scaling in words that are not known here."""
    for word, value in metadata.items():
        if (word.startswith("ss_") and word != "ss_network_args") or word in (*ALPHA, *RANK, "lora_adapter_metadata"):
            continue
        if word == "ss_network_args":
            try:
                given = json.loads(value or "{}")
                speaks = [f"{k} = {v}" for k, v in (given or {}).items() if re.search("dora|rs_?lora|scalar", k.lower()) and _yes(v)]
            except (ValueError, AttributeError, RecursionError) as error:
                raise ValueError(f"{file}: its metadata's {word} cannot be read: {error}") from None
        else:
            speaks = [f"{word} = {value}"] if SCALING.search(word) and not word.startswith("modelspec.") and _yes(value) else []
        if speaks:
            raise ValueError(f"{file}: its metadata say {speaks[0]}, which is not understood: save it as diffusers does, as a plain LoRA")


def _yes(value: Any) -> bool:
    return str(value).strip().lower() not in ("", "none", "null", "false", "{}")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. ValueError where a name comes twice, which would silently be the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a name comes twice in {', '.join(sorted(name for name, _ in pairs))}")
    return found


def _positive(name: str, value: Any, whole: bool) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r}, and is to be a {'whole ' if whole else ''}number above 0")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _of_layer(patterns: dict[str, Any], layer: str, otherwise: Any) -> Any:
    """A layer's number by PEFT's rule: of the first pattern that is its name or the end of it, else `otherwise`."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer)), otherwise)


def _elsewhere(blocks: int) -> dict[str, str]:
    """{a layer's name in Wan's own code (`blocks.0.self_attn.q`) or in kohya's (`lora_unet_blocks_0_self_attn_q`): in diffusers}.

    Told by diffusers' own converters, which are given numbers for tensors. That they scale by alpha, round where tensors are short, and
    leave out what they do not know, so does not matter.
    """
    from diffusers import WanImageToVideoPipeline

    attention = [f"{kind}_attn.{part}" for kind in ("self", "cross") for part in "qkvo"]
    parts = (*attention, "cross_attn.k_img", "cross_attn.v_img", "ffn.0", "ffn.2")
    inside = [f"blocks.{i}.{part}" for i in range(blocks) for part in parts]
    around = ["time_projection.1", "head.head", "img_emb.proj.1", "img_emb.proj.3"]
    around += [f"{kind}_embedding.{i}" for kind in ("text", "time") for i in (0, 2)]
    found: dict[str, str] = {}
    for names, key in ((inside + around, "diffusion_model.{}"), ([n.replace(".", "_") for n in inside], "lora_unet_{}")):
        probe = {}
        for number, name in enumerate(names):
            value = torch.full((1, 1), float(number))
            probe |= {f"{key.format(name)}.lora_{half}.weight": value for half in ("down", "up")}
            if key.startswith("lora_unet"):
                probe[f"{key.format(name)}.alpha"] = torch.ones(())
        for converted, value in WanImageToVideoPipeline.lora_state_dict(probe).items():  # pyright: ignore[reportAttributeAccessIssue]
            if converted.endswith(".lora_A.weight"):
                source = key.format(names[int(value)]).removeprefix("diffusion_model.")
                found[source] = converted.removeprefix("transformer.").removesuffix(".lora_A.weight")
    return found


def _layers(profile: Profile) -> dict[str, tuple[int, int]]:
    """{name: (inputs, outputs)} of the base's linear layers."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        transformer = WanTransformer3DModel(**sizes.transformer_config(profile))
    return {n: (m.in_features, m.out_features) for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}

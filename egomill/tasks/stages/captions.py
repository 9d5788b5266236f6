"""What happens in a clip, in words: from annotators, from a vision-language model, or from a template; `source` says which.

The vision-language model is asked through an OpenAI-compatible endpoint, in the two-view form of EgoX (Table 6), and sees exo frames only:
a caption that had seen the true ego view would carry it into training and evaluation alike.
"""

from __future__ import annotations

import base64
import io
import os
from functools import partial

import httpx
import numpy as np
from PIL import Image

from egomill.schemas.config import Captions, Profile
from egomill.schemas.outcome import Rejected
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import video, views

INSTRUCTION = """You see frames, in order, of a video from a fixed camera that watches a person at work. Write two descriptions.
First the video as this camera shows it; then the same moments as the person sees them through a camera on their head. For the second, infer
only what the frames support: which objects lie before the person, what their hands do, what comes into view as they turn.
Describe visible facts in plain present tense; no names, no guesses about age, origin or feelings; do not mention cameras or frames.
Answer in exactly this form:
[Exo view] **Scene Overview:** ... **Action Analysis:** ...
[Ego view] **Scene Overview:** ... **Action Analysis:** ..."""
TIMEOUT = 120.0  # seconds for one answer


def stage(profile: Profile) -> Stage:
    """Captions of every chosen clip. ValueError where a VLM is asked for without endpoint or model."""
    captions = profile.captions
    columns = ("task", "description")
    if captions.source == "descriptions":
        return Stage("captions", {"clips": columns}, {"source": captions.source}, partial(Describe), where="chosen")
    if not (captions.endpoint and captions.model):
        raise ValueError("captions.source = vlm needs captions.endpoint and captions.model")
    config = captions.model_dump(exclude={"endpoint"})
    return Stage("captions", {"clips": (*views.EXO_COLUMNS, *columns)}, config, partial(Ask, captions), where="chosen")


class Describe:
    """Annotators' sentences where there are any, else a sentence from the take's task."""

    def __call__(self, row: dict) -> dict:
        clip = row["clips"]
        if clip["description"]:
            shipped = clip["description"].startswith("[Exo view]")
            return {"text": clip["description"], "source": "shipped prompt, exo half" if shipped else "atomic descriptions"}
        task = (clip["task"] or "").strip().rstrip(".")
        return {"text": f"A person at work: {task}." if task else "A person at work, handling objects.", "source": "template"}


class Ask:
    """A vision-language model behind an OpenAI-compatible endpoint; the key, if one is needed, is in OPENAI_API_KEY."""

    def __init__(self, captions: Captions) -> None:
        self.settings = captions
        key = os.environ.get("OPENAI_API_KEY", "")
        transport = httpx.HTTPTransport(retries=2)
        self.client = httpx.Client(timeout=TIMEOUT, transport=transport, headers={"Authorization": f"Bearer {key}"} if key else {})

    def __call__(self, row: dict) -> dict | Rejected:
        try:
            frames = views.read_exo(row["clips"])
        except video.VideoError as error:
            return Rejected("video_undecodable", str(error))
        numbers = np.linspace(0, len(frames) - 1, self.settings.exo_frames).round().astype(int)
        content = [{"type": "text", "text": INSTRUCTION}]
        content += [{"type": "image_url", "image_url": {"url": _jpeg(frames[i])}} for i in numbers]  # type: ignore[dict-item]
        body = {"model": self.settings.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
        answer = self.client.post(f"{self.settings.endpoint.rstrip('/')}/chat/completions", json=body)
        if answer.status_code in (401, 403, 404, 408, 429) or answer.status_code >= 500:
            answer.raise_for_status()  # the endpoint's trouble, or ours with it: tried again next time, as one that cannot be reached
        try:
            text = answer.raise_for_status().json()["choices"][0]["message"]["content"].strip()
        except (httpx.HTTPError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            return Rejected("caption_failed", f"{type(error).__name__}: {error}")
        if "[Exo view]" not in text or "[Ego view]" not in text:
            return Rejected("caption_failed", f"not in the asked form: {text[:200]}")
        return {"text": text, "source": f"vlm {self.settings.model}"}


def _jpeg(frame: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"

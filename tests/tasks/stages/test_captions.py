"""Captions say where they come from, and a vision-language model is never shown the true ego view."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import numpy as np
import pytest
from PIL import Image

from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.tasks.media import views
from egomill.tasks.media.sources import discover
from egomill.tasks.stages import captions, clips, takes
from tests.tasks.tiny_release import write_release

GOOD = "[Exo view] **Scene Overview:** A room. **Action Analysis:** x. [Ego view] **Scene Overview:** Hands. **Action Analysis:** y."


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_release(root)
    (item,) = discover([root])
    profile = Profile.load("local", ["clips.exo_size=[112, 64]", "clips.ego_size=64"])
    return clips.stage(profile).worker()({"takes": takes.stage(profile).worker()(item.row)})[0]


@pytest.fixture
def endpoint():
    """A chat-completions endpoint on this machine; `answer` is (status, content), `asked` what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            server.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, content = server.answer
            body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answer = [], (200, GOOD)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asking(server):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    settings = ["captions.source=vlm", f"captions.endpoint={url}", "captions.model=some-model", "captions.exo_frames=3"]
    return captions.stage(Profile.load("local", settings))


def told(**columns):
    worker = captions.stage(Profile.load("local")).worker()
    return worker({"clips": {"task": "", "description": "", **columns}})


def test_from_annotators_or_a_template(clip):
    assert told(description="C turns a bolt.") == {"text": "C turns a bolt.", "source": "atomic descriptions"}
    assert told(task="Fixing a bike") == {"text": "A person at work: Fixing a bike.", "source": "template"}
    assert told()["source"] == "template"
    assert told(description="[Exo view] A room.")["source"] == "shipped prompt, exo half"


def test_the_model_sees_exo_frames_only(clip, endpoint):
    worker = asking(endpoint).worker()
    assert worker({"clips": clip}) == {"text": GOOD, "source": "vlm some-model"}
    ((path, body),) = endpoint.asked
    assert path == "/v1/chat/completions"
    assert body["model"] == "some-model"
    parts = [part for message in body["messages"] for part in message["content"]]
    shown = [_picture(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
    exo = views.read_exo(clip)[[0, 4, 8]]
    assert len(shown) == 3
    assert np.abs(np.stack(shown).astype(int) - exo).mean() < 12
    assert not any(isinstance(part.get("text"), str) and "ego_video" in part["text"] for part in parts)


@pytest.mark.parametrize("answer", [(200, "I cannot help with that."), (200, ""), (200, None), (400, GOOD), (422, GOOD)])
def test_an_unusable_answer_is_a_rejection(clip, endpoint, answer):
    endpoint.answer = answer
    result = asking(endpoint).worker()({"clips": clip})
    assert isinstance(result, Rejected)
    assert result.reason == "caption_failed"


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_the_endpoints_trouble_is_no_fault_of_the_clip(clip, endpoint, status):
    """It raises, becomes a failed row, and is tried again on the next run."""
    endpoint.answer = (status, GOOD)
    with pytest.raises(httpx.HTTPStatusError):
        asking(endpoint).worker()({"clips": clip})


def test_nobody_there(clip):
    settings = ["captions.source=vlm", "captions.endpoint=http://127.0.0.1:9/v1", "captions.model=m"]
    with pytest.raises(httpx.TransportError):
        captions.stage(Profile.load("local", settings)).worker()({"clips": clip})


def test_settings(endpoint):
    with pytest.raises(ValueError, match=r"captions\.endpoint"):
        captions.stage(Profile.load("local", ["captions.source=vlm"]))
    stage = asking(endpoint)
    assert "endpoint" not in stage.config  # another host for the same model changes no caption
    assert not any("ego" in column for column in stage.reads["clips"])


def _picture(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))

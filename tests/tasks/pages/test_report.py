"""The report page: complete in itself, and its videos play in a browser."""

import re
import shutil
import subprocess
from datetime import UTC, datetime

import numpy as np
import pytest

from egomill.schemas.config import Profile
from egomill.schemas.outcome import Report
from egomill.tasks.lake import releases, runs
from egomill.tasks.lake.runs import Run
from egomill.tasks.lake.tables import Lake
from egomill.tasks.lake.tracking import CANDIDATE, Tracker
from egomill.tasks.media import video
from egomill.tasks.pages import report
from egomill.tasks.training import gate
from tests.tasks import tiny_lake


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    ids = tiny_lake.build(lake, clips=6, takes=3, held_out=3)
    profile = Profile.load("local")
    tracker = Tracker.beside(lake.uri)
    made = {"fingerprint": "f", "run_id": "run"}
    lake.upsert("latents", [{**made, "clip_id": i, "model": "embedded", "name": "ego"} for i in ids])
    run = Run(lake, "nightly", profile)
    run.reports = [Report("clips", inputs=3, outputs=2, rejected=1), Report("generations/egox@v1", inputs=3, outputs=3, computed=3)]
    run.reports[0].reasons["too_short"] = 1
    release, _ = releases.publish(lake, run.id, profile, "night-1")
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "egomill.json").write_text("{}")
    adapter = tracker.register("egox", folder, tracker.start("train"), {"release": release["name"], "base": "embedded"})
    tracker.alias(adapter, CANDIDATE)
    rng = np.random.default_rng(0)
    for i, key in enumerate(ids[3:]):
        for name in ("base", adapter.spec):
            frames = rng.integers(0, 255, (tiny_lake.FRAMES, 64, 64, 3), dtype=np.uint8)
            row = {"clip_id": key, "adapter": name, "seed": 1, "sampler": "{}", "seconds": 0.1}
            lake.upsert("generations", [made | row | {"video": video.encode(frames, 10, lossless=True)}])
        for name, gain in {"prior": 0.1, "codec": 5.0, "base": 0.0, adapter.spec: 0.5}.items():
            values = {m: (15.0 if m[0] == "p" else 0.5) + gain * (1 + 0.1 * i) for m in gate.METRICS}
            rows = [{"metric": m, "value": v, "why": ""} for m, v in values.items()]
            rows.append({"metric": "fvd", "value": None, "why": "not computed: no weights"})
            lake.upsert("scores", [made | r | {"clip_id": key, "adapter": name} for r in rows])
    trace = "Traceback (most recent call last):\n" + "  File '<x>'\n" * 40 + "ValueError: <script>alert(1)</script>"
    failures = [("take9", "clips", "rejected", "too_short", "5 frames"), ("k", "depth", "failed", "ValueError", trace)]
    failures.append(("<b>k\u202e\x1b[2J", "takes", "rejected", "file_unusable", 'x" onload="alert(2)\x07'))
    keys = ("key", "stage", "status", "reason", "detail")
    more = {"fingerprint": "f", "run_id": "run", "attempt": 1, "at": datetime.now(UTC)}
    lake.upsert("failures", [dict(zip(keys, f, strict=True)) | more for f in failures])
    monkeypatch.setattr(runs, "code_of", lambda module: "c")
    run.write("completed")
    monkeypatch.undo()
    return report.render(lake, tracker, "egox@candidate", tmp_path_factory.mktemp("page") / "report.html")


def test_page_says_what_was_made_and_nothing_leads_outside(page):
    text = page.read_text()
    for words in ("egox@v1", "night-1", "Rejected and failed", "too_short", "not computed: no weights", "3 takes", "filled prior"):
        assert words in text, words
    assert "<script>alert" not in text
    assert '" onload=' not in text
    assert "&lt;b&gt;k\\u202e\\x1b[2J" in text
    assert not set("\u202e\x1b\x07") & set(text)
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", text) + re.findall(r"url\(([^)]+)\)", text)
    assert addresses
    assert [a[:60] for a in addresses if not a.startswith(("data:", "#"))] == []
    assert "http://" not in text
    assert "https://" not in text


def test_depth_that_is_off_at_the_head_is_shown(page):
    text = page.read_text()
    assert "median 1.40 over 5 clips (never seen in 1)" in text
    assert "A quarter off and more: 5, furthest <code>take" in text
    assert "the head at 1.40 times its distance" in text


def test_every_video_loads_in_chromium(page):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]
    command = [chromium, *flags, "--timeout=20000", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=240)
    root = re.search(r"<html[^>]*>", shown.stdout)
    assert root, shown.stderr[-2000:]
    counts = {k: int(v) for k, v in re.findall(r'data-(videos|ready|broken)="(\d+)"', root.group())}
    assert counts == {"videos": 3 * 6, "ready": 3 * 6, "broken": 0}

"""How far things are, said once a minute where nobody watches a bar."""

from __future__ import annotations

import io

from egomill.flows import progress
from egomill.flows.terminal import Terminal


def test_a_line_a_minute_with_what_is_left(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Meter("train", lines.append, Terminal(file=io.StringIO())) as advance:
        advance(10, 100, "loss 0.9")
        for step in range(11, 100):
            now[0] += 10
            advance(step, 100, f"loss {1 - step / 100:.2f}")
        advance(100, 100)
    assert lines[0] == "train: 16 of 100, loss 0.84, about 14 min left"
    assert len(lines) == 14  # in 890 seconds
    assert lines[-1] == "train: 94 of 100, loss 0.06, about 1 min left"


def test_what_is_soon_done_says_nothing():
    lines: list[str] = []
    with progress.Meter("depth", lines.append, Terminal(file=io.StringIO())) as advance:
        for done in range(4):
            advance(done, 3)
    assert lines == []

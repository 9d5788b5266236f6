"""docs/rejections.md names every reason once, with the meaning that the code has, and says what one can do."""

from __future__ import annotations

import re
from pathlib import Path

from egomill.schemas.outcome import REASONS

PAGE = Path(__file__).parents[2] / "docs" / "rejections.md"


def test_the_page_and_the_code_list_the_same_reasons():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len(REASONS)
    assert dict(row[:2] for row in rows) == REASONS
    assert all(len(advice) > 10 for _, _, advice in rows)

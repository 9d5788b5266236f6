"""Words that others wrote, made safe to show. Whatever leaves for a terminal, a page or a server passes through `plain`."""

from __future__ import annotations


def plain(text: str, most: int | None = 2000, lines: bool = False) -> str:
    """`text` in characters that one sees: each that drives a terminal, turns the direction of writing, takes no room or is no Unicode
    stands there as its escape (\\x1b, \\u202e, \\udc80), so that it hides nothing and does nothing.

    Of more than `most` characters (None: however many) the middle is left out, and said to be. `lines`: breaks of lines stay.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() or (lines and c == "\n") else c.encode("unicode_escape").decode() for c in text)
    if most is not None and len(text) > most:
        half = most // 2
        text = f"{text[:half]} ... {len(text) - 2 * half} characters ... {text[-half:]}"
    return text

"""Text from anywhere, made safe to show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egomill.schemas.text import plain

ANY = st.text(st.characters(exclude_categories=[]))  # lone surrogates too


@given(ANY)
def test_what_comes_out_is_printable_and_unicode_and_nothing_printable_is_lost(text):
    shown = plain(text, most=None)
    assert shown.isprintable()
    shown.encode()
    kept = "".join(c for c in text if c.isprintable())
    assert len(shown) >= len(kept)
    if text.isprintable():
        assert shown == text
    assert plain(text, most=None, lines=True).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("\x9b2J", r"\x9b2J"),  # the same in one byte
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
        ("a\r\nb\u2028c", r"a\r\nb\u2028c"),
        ("caf\udcc3", r"caf\udcc3"),
        ("Küche 厨房 [/red] \\x1b", "Küche 厨房 [/red] \\x1b"),
    ],
)
def test_each_kind(text, shown):
    assert plain(text) == shown


def test_of_long_texts_the_ends_stay():
    shown = plain("a" + "x" * 100_000 + "z", most=20)
    assert shown == f"a{'x' * 9} ... 99982 characters ... {'x' * 9}z"
    assert plain("a\nb", lines=True) == "a\nb"

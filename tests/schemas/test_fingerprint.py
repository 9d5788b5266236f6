"""What changes a fingerprint and what does not."""

from __future__ import annotations

import ast
import textwrap

import pytest

from egomill.schemas import fingerprint
from egomill.schemas.fingerprint import code_of, content_of, digest, reaches


@pytest.fixture
def sources(monkeypatch):
    """A made-up package: {module: source}."""
    book: dict[str, str] = {}
    monkeypatch.setattr(fingerprint, "_source", lambda name: book.get(name))
    for function in (fingerprint.reaches, fingerprint._imports, fingerprint._tree_hash):
        function.cache_clear()

    def change(**files: str) -> None:
        book.update({f"egomill.{name}": textwrap.dedent(text) for name, text in files.items()})
        for function in (fingerprint.reaches, fingerprint._imports, fingerprint._tree_hash):
            function.cache_clear()

    yield change
    for function in (fingerprint.reaches, fingerprint._imports, fingerprint._tree_hash):
        function.cache_clear()


def test_comments_docstrings_and_layout_do_not_count(sources):
    sources(a='"""Doc."""\nfrom egomill import b\ndef f(x):\n    """Says."""\n    return x+1  # one more\n', b="y = 2\n")
    before = code_of("egomill.a")
    sources(a="from egomill import b\n\ndef f( x ):\n    return (x + 1)\n")
    assert code_of("egomill.a") == before
    sources(a="from egomill import b\n\ndef f(x):\n    return x + 2\n")
    assert code_of("egomill.a") != before


def test_a_change_anywhere_below_counts_and_elsewhere_does_not(sources):
    sources(a="from egomill import b\n", b="import egomill.c\n", c="z = 3\n", d="w = 4\n")
    before = code_of("egomill.a")
    assert reaches("egomill.a") == {"egomill.a", "egomill.b", "egomill.c"}
    sources(d="w = 5\n")
    assert code_of("egomill.a") == before
    sources(c="z = 4\n")
    assert code_of("egomill.a") != before


def test_kernels_reach_only_kernels():
    assert all(name.startswith("egomill.kernels") for name in reaches("egomill.kernels.prior"))


def test_bookkeeping_is_left_out():
    assert "egomill.schemas.config" in set(fingerprint._imports("egomill.tasks.lake.actors"))
    assert not fingerprint.BOOKKEEPING & reaches("egomill.tasks.stages.clips")


def test_digest_ignores_key_order_and_refuses_what_json_cannot_say():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest(1) != digest("1")
    with pytest.raises(TypeError):
        digest(ast)
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))


def test_content_is_of_values_bit_for_bit():
    row = {"a": 1, "b": 0.0, "c": b"x", "d": [None, {"e": "x"}], "run_id": "1"}
    same = {"d": [None, {"e": "x"}], "c": b"x", "b": 0.0, "a": 1, "run_id": "2"}
    assert content_of(row, ("run_id",)) == content_of(same, ("run_id",)) != content_of(row)
    for other in (
        {"b": -0.0},
        {"a": 1.0},
        {"c": "x"},
        {"d": [None, {"e": b"x"}]},
        {"d": [{"e": "x"}, None]},
        {"a": None},
        {"b": float("nan")},
    ):
        assert content_of({**row, **other}, ("run_id",)) != content_of(row, ("run_id",)), other
    assert content_of({"x": float("nan")}) == content_of({"x": float("nan")})
    assert content_of({"x": ["ab", "c"]}) != content_of({"x": ["a", "bc"]})

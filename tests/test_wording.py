"""Words of lines for people, by hand."""

from __future__ import annotations

import pytest
from vis4mer.store.wording import counted, describe_error, first_line, inert_cell, some_of, visible


def test_what_commands_a_terminal_or_turns_writing_is_spelled_out() -> None:
    text = "a\tb\n\x1b[2J\x9b\u2028\u202e\u2066\ud800é"
    assert visible(text) == r"a\x09b\x0a\x1b[2J\x9b\u2028\u202e\u2066\ud800é"
    assert visible("a\tb\n\x07", keep="\t\n") == "a\tb\n\\x07"


def test_counts_and_short_lists() -> None:
    found = [counted(number, "video") for number in (0, 1, 2, 1234)]
    assert found == ["0 videos", "1 video", "2 videos", "1,234 videos"]
    assert some_of([]) == ""
    assert some_of("abc", most=3) == "a, b, c"
    assert some_of("abcd", most=3) == "a, b, c and 1 more"
    assert some_of(["x"] * 2000, most=1) == "x and 1,999 more"


def test_errors_of_others_in_one_line() -> None:
    assert first_line(ValueError("\n  one \ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("x" * 999)) == "x" * 500 + "…"
    assert describe_error(KeyError("k")) == "KeyError: 'k'"
    assert describe_error(OSError()) == "OSError"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("plain", "plain"),
        ("-1.5e3", "-1.5e3"),
        ("=1+1", "'=1+1"),
        (' "@x', "' \"@x"),
        ("a;=b", "a;'=b"),
        ("＋x", "'＋x"),
        ("\t=x", "\\x09=x"),
        ("-e6l", "'-e6l"),
    ],
)
def test_no_spreadsheet_computes_a_cell(text: str, cell: str) -> None:
    assert inert_cell(text) == cell


def test_signs_without_width_are_spelled_out() -> None:
    text = "a\u061cb\u200bc\u200fd\ufeffe"
    assert visible(text) == r"a\u061cb\u200bc\u200fd\ufeffe"

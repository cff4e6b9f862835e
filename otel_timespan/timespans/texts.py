"""Texts from outside, as people may see them: names of functions and tasks, labels, texts of exceptions.

The problem: a name may hold anything. A control character commands a terminal and is no XML, a lone surrogate (of a
file name that is no UTF-8) can't be written, a line break or a change of direction makes one name look like
several. Everything that shows names (pictures, tables, bars, reports) takes them through `printable`.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["cell", "for_file", "printable", "text_of"]

_HARMFUL = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters, line breaks among them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of what follows
    "\u2028\u2029"  # line breaks of Unicode
    "\ud800-\udfff"  # lone surrogates: no UTF-8
    "\ufeff\ufffe\uffff"  # no characters, and not allowed in XML
    "]"
)
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""What a spreadsheet takes for the beginning of a formula; the full-width ones too."""


def text_of(value: Any) -> str:
    """Any object as a text, of exactly the type `str`. Never raises (but for Ctrl-C)."""
    if type(value) is str:
        return value
    try:
        return str.__str__(value if isinstance(value, str) else str(value))
    except KeyboardInterrupt:
        raise
    except BaseException:  # a __str__ of the user's may raise anything
        return f"<unreadable {type(value).__name__}>"


def printable(value: Any) -> str:
    r"""A text in one line that no terminal, file or parser takes amiss: what could harm is escaped, as `\x1b`.

    What else is in it stays: letters of all scripts, quotes, markup. To escape these is up to each format.
    """
    text = text_of(value)
    if text.isprintable():
        return text
    return _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cell(value: Any) -> str:
    """A text for a cell of a CSV file: `printable`, and what a spreadsheet would compute begins with an apostrophe."""
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def for_file(text: str, file: Any) -> str:
    """The text as an open file can take it: what its encoding lacks is escaped."""
    encoding = getattr(file, "encoding", None)
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding) if encoding else text
    except (LookupError, TypeError):  # a file of somebody's own
        return text

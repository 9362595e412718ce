"""Text for a terminal: what a distribution, a paper or an error says does not steer it."""

from __future__ import annotations

import sys
from typing import TextIO

# Escapes and other control characters, C1 among them, and the marks that change the direction of writing.
_CONTROLS = [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]
_MARKS = [0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_SHOWN = {code: f"\\x{code:02x}" for code in _CONTROLS} | {code: f"\\u{code:04x}" for code in _MARKS}
_PLAIN = {"–": "-", "±": "+/-", "…": "...", "’": "'", "×": "x"}


def clean(text: str) -> str:
    """``text`` with its control characters written out; line breaks and tabs stay."""
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """`clean` text on one line."""
    return clean(" ".join(text.split()))


def fitting(text: str, stream: TextIO | None = None) -> str:
    """``text`` as the stream, stdout by default, can show it: plain characters where it has no others."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for character, plain in _PLAIN.items():
            text = text.replace(character, plain)
    return text

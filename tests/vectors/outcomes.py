"""What becomes of a packet that no server gets, as cases put it in words."""

from __future__ import annotations

import re

# names of outcomes, and what a case may call them; the first that fits is meant
_WORDS = (
    ("reset", r"\brst\b"),
    ("unreachable", r"\bicmp(v6)? ?(3/3|1/4)\b|port unreachable"),
    ("echo", r"\becho reply\b"),
    ("accepted", r"\baccepted\b|\blocal stack\b|\bpassed\b"),
    ("dropped", r"\bdropped?\b|\bsilen(t|ce)|\bnothing\b|\bno answer\b"),
)


def outcome(text: str) -> str:
    """The outcome's name; ValueError where the words say none."""
    lower = text.lower().replace("-", " ")
    for name, pattern in _WORDS:
        if re.search(pattern, lower):
            return name
    raise ValueError(f"{text!r} says no outcome (RST, ICMP 3/3, echo reply, accepted, dropped)")

"""A backend's thresholds as the word that the data plane has of them: bpf/limit.h."""

from __future__ import annotations

from lvsxdp.model import Backend

BITS = 31
OVERLOADED = 1 << 63


def word_of(backend: Backend) -> int:
    """Both thresholds, 0 without an upper one; IPVS's lower one where none is given."""
    upper, lower = backend.upper_threshold, backend.lower_threshold
    return upper | (lower or upper - upper // 4) << BITS if upper else 0


def is_overloaded(word: int, total: int) -> bool:
    """Whether a backend with this word and so many connections gets no more."""
    upper, lower = word & 2**BITS - 1, word >> BITS & 2**BITS - 1
    return bool(word) and (total >= upper or (total >= lower and bool(word & OVERLOADED)))

"""Lines of text as words, where only the line's place is known."""

from __future__ import annotations


def shared_out(text: str) -> list[tuple[str, float, float]]:
    """A line's words, each with the part of the line's length that it takes: (word, from, to).

    The length, 0..1, is shared out by the numbers of characters, spaces included: as if all were
    equally wide. That is what can be known of a word whose line alone was found.
    """
    text = text.strip()
    found: list[tuple[str, float, float]] = []
    end = 0
    for word in text.split():
        begin = text.index(word, end)
        end = begin + len(word)
        found.append((word, begin / len(text), end / len(text)))
    return found

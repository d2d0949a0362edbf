"""Slips of the hand: which word was meant by one that does not exist.

Forgiven is what is certain. The slip is a word that no dictionary has, and one movement away from
the other text's word: two letters the wrong way round, a letter left out or struck twice, or the
key beside it (Damerau, "A technique for computer detection and correction of spelling errors", CACM
1964: four such movements make 80 % of all errors). No other common word may be one movement away,
and neither the first letter nor the ending may be touched, since endings carry meaning (mug, mugs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

__all__ = ["meant"]

SHORTEST = 5
"""Letters of the shortest word in which a slip is forgiven."""
COMMON = 40_000
"""Rank up to which a word may have been meant, and up to which another one makes it doubtful."""
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _beside() -> dict[str, str]:
    """Return for each key those around it on a QWERTY keyboard, whose rows are shifted by half."""
    found: dict[str, str] = {}
    for y, row in enumerate(ROWS):
        for x, key in enumerate(row):
            around = [
                (x - 1, y),
                (x + 1, y),
                (x, y - 1),
                (x + 1, y - 1),
                (x - 1, y + 1),
                (x, y + 1),
            ]
            found[key] = "".join(
                ROWS[j][i] for i, j in around if 0 <= j < len(ROWS) and 0 <= i < len(ROWS[j])
            )
    return found


BESIDE = _beside()


def _undone(slip: str) -> Iterator[tuple[int, str]]:
    """Yield what may have been meant by ``slip``, each with the place of the movement."""
    for at in range(1, len(slip)):
        head, here, tail = slip[:at], slip[at], slip[at + 1 :]
        for letter in ALPHABET:  # it was left out
            yield at, head + letter + slip[at:]
        if here == slip[at - 1]:  # it was struck twice
            yield at, head + tail
        for letter in BESIDE.get(here, ""):  # the key beside it
            yield at, head + letter + tail
        if tail and tail[0] != here:  # the wrong way round
            yield at, head + tail[0] + here + tail[1:]


def meant(slip: str, ranks: Mapping[str, int]) -> str | None:
    """Return the one word that was certainly meant by ``slip``, or None. Both in lower case.

    ``ranks`` are the words that exist, the most frequent first. It takes some 300 look-ups.
    """
    if slip in ranks or not (slip.isascii() and slip.isalpha()) or len(slip) < SHORTEST - 1:
        return None
    found = [(at, guess) for at, guess in _undone(slip) if ranks.get(guess, COMMON) < COMMON]
    words = {guess for _, guess in found}
    if len(words) != 1 or not any(at < len(slip) - 1 for at, _ in found):
        return None
    word = words.pop()
    return word if len(word) >= SHORTEST else None

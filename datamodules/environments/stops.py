"""Where a response ends that holds a stop sequence."""

import re
from collections.abc import Sequence

BRACKETS = {"}": "{", "]": "[", ")": "("}
TWINS = ("```", "~~~", "$$", "$", "**")
"""Marks that open and close alike, the longer first."""


def up_to_stop(text: str, stops: Sequence[str], begin: int = 0) -> str:
    """``text`` up to the first stop sequence from ``begin`` on.

    A stop sequence that closes what stands open before it belongs to the text: whoever stops at
    ``</answer>`` has said that the answer ends there.
    """
    places = [(text.find(stop, begin), -len(stop), stop) for stop in stops]
    found = min((place for place in places if place[0] >= 0), default=None)
    if found is None:
        return text
    end, _, stop = found
    before = text[:end]
    return before + stop if closes(stop, before) else before


def closes(stop: str, before: str) -> bool:
    """Whether a stop sequence closes a tag, a bracket or a mark that ``before`` has opened."""
    mark = stop.strip()
    tag = re.fullmatch(r"([<\[])/([\w.:-]+)\s*[>\]]", mark)
    if tag:
        opening = rf"{re.escape(tag[1] + tag[2])}[\s>\]]"
        return len(re.findall(opening, before)) > before.count(mark)
    if mark in BRACKETS:
        return before.count(BRACKETS[mark]) > before.count(mark)
    return mark in TWINS and before.count(mark) % 2 == 1

r"""Answers that are no mathematics: a letter of multiple choice, a time of day, words.

Each is a ``Reading`` of the expected answer with a method that says whether a claim states it. A
claim may say more (``B) 12``, "yes, because .."), but no second label, time or list of words.
"""

import re
from dataclasses import dataclass
from typing import Protocol

from datamodules.mathematics.claims import Claim
from datamodules.mathematics.residue import (
    CHANGED_BEFORE,
    CHANGED_BEHIND,
    DENIED_BEFORE,
    DOUBTS,
    EXPLAINS,
    is_withdrawn,
)

LETTER = re.compile(
    r"(?:(?i:option|choice|answer)\s)?(?:[(\[]\s?([A-Ja-j])\s?[)\]]|([A-J])\s?[).:\]]?)"
    r"(?:(?<=[)\].:])\s.{1,200})?"
)
LABEL = r"[(\[]?\s?(?:[A-J])\s?(?:[)\]]|(?![\w'\]]))"
LEAD = (
    r"(?i:(?:the|so|thus|therefore|hence|it|its|it's|is|be|must|clearly|definitely|simply|indeed"
    r"|correct|right|best|final|answer|option|choice|letter|alternative|statement|that"
    r"|i\s(?:choose|pick|select|think|believe|would\s(?:choose|pick|select|say)))\b[\s,:=*]*)*"
)
CHOSEN = re.compile(rf"{LEAD}(?:[(\[]\s?([A-J])\s?[)\]]\s*:?|([A-J]))(?P<rest>.*)", re.DOTALL)
SMALL = re.compile(r"[(\[]?([a-j])[)\]]?[.:]?")
NAMED = re.compile(r"\b(?i:option|choice|answer|is|be)\s?:?\s?[(\[]?([A-J])(?:[)\]]|(?![\w'(=]))")
IN_BRACKETS = re.compile(r"[(\[]([A-J])[)\]]")
MORE_LABELS = re.compile(
    rf"(?:\b(?i:or|and|nor|versus|vs)\b|[,;/&?|+])\s*(?i:option|choice|{DOUBTS})?\s*{LABEL}"
    rf"|[(\[][A-J][)\]]|(?<![\w'])[B-HJ][)\]]|^\s+(?:option\s)?[(\[]?[B-HJ](?![\w'])|\?"
    rf"|\b(?i:{DOUBTS}|(?:could|might|may)\s(?:also\s)?be)\b"
)
SAYS_MORE = re.compile(
    r"\s*(?:[.*!]*$|[):.\],;*]|-+\s|\(|\s(?:is|was|as|with|for|[-$\d\\])"
    rf"|\s*{EXPLAINS.pattern})",
    re.I,
)
CLOCK = re.compile(
    r"(?<![\d:.,$])(?P<h>\d{1,2})(?:\s?:\s?(?P<m>\d{2}))?(?::(?P<s>\d{2}))?(?![\d:])"
    r"(?:\s?(?P<half>[ap])\.?\s?m\b\.?)?",
    re.I,
)
WORDS = re.compile(r"[^\W\d_][^\d_=<>+*/^\\{}$|]*")
FUNCTION_WORDS = (
    r"(?:the|an?|he|she|it|they|we|i|you|this|that|there|these|those|his|her|their|its|our|my|all|both"
    r"|is|was|are|were|has|have|had|can|could|will|would|does|do|did|for|in|of|with|by|on|at)"
)
VERBS = r"(?:is|was|are|were|has|have|had|does|did|can|will|it|they|he|she|we|you|i)"
OPENING = re.compile(
    r"(?:(?:so|thus|therefore|hence|it|it's|is|that|that's|was|clearly|definitely|indeed|the|an?)\b[\s,:]*)*",
    re.I,
)


class Reading(Protocol):
    """An expected answer that is read in a way of its own."""

    def stated_by(self, said: str, form: str) -> bool:
        """Whether the words of a claim, in plain LaTeX, state it; ``form`` is the claim's."""


@dataclass(frozen=True)
class Choice:
    """One letter of multiple choice."""

    letter: str

    def stated_by(self, said: str, form: str) -> bool:
        text = bare(said)
        if small := SMALL.fullmatch(text):
            return small[1].upper() == self.letter
        match = CHOSEN.fullmatch(text)
        if match is None or not self._says_no_other(match["rest"], bool(match[1])):
            found = {*IN_BRACKETS.findall(text)} or {*NAMED.findall(text)}
            last = list(re.finditer(rf"[(\[]?{self.letter}[)\]]?", text))
            if found != {self.letter} or DENIED_BEFORE.search(text[: last[-1].start()]):
                return False
            return self._says_no_other(text[last[-1].end() :])
        return (match[1] or match[2]) == self.letter

    def _says_no_other(self, rest: str, delimited: bool = False) -> bool:
        if is_withdrawn(rest) or not (delimited or SAYS_MORE.match(rest)):
            return False
        return not MORE_LABELS.search(EXPLAINS.split(rest)[0])


@dataclass(frozen=True)
class Time:
    """A time of day, in seconds; ``half`` is am, pm, or empty where that is not said."""

    seconds: int
    half: str

    def stated_by(self, said: str, form: str) -> bool:
        text = bare(said) if form == "last" else EXPLAINS.split(bare(said))[0]
        found = [(match, time) for match in CLOCK.finditer(text) if (time := read_clock(match))]
        if not found or (form != "last" and {time for _, time in found} != {found[0][1]}):
            return False
        match, time = found[-1]
        before, behind = text[: match.start()].rpartition("\n")[2], text[match.end() :]
        head = EXPLAINS.split(behind)[0]
        if CHANGED_BEFORE.search(before) or DENIED_BEFORE.search(before):
            return False
        if re.search(r"\b(?:before|after|until|past)\s*$|[<>]", before, re.I):
            return False
        if CHANGED_BEHIND.search(head) or re.search(r"[\d?]", head.partition("\n")[0]):
            return False
        return self.same(time)

    def same(self, other: "Time") -> bool:
        """Equal; where the expected answer says no half of the day, that is not asked for."""
        if self.half == other.half:
            return self.seconds == other.seconds
        if not self.half:
            return (self.seconds - other.seconds) % (12 * 3600) == 0
        return not other.half and other.seconds >= 13 * 3600 and other.seconds == self.seconds


@dataclass(frozen=True)
class Words:
    """Words without mathematics: yes, a name, a day."""

    words: str

    def stated_by(self, said: str, form: str) -> bool:
        texts = [said]
        if form == "last":
            texts.append(re.split(r"[.!?]\s", said.rstrip(". "))[-1])
        return any(self._begins(bare(text)) for text in texts)

    def _begins(self, text: str) -> bool:
        text, words = folded(text), folded(self.words)
        if text == words:
            return True
        text = OPENING.sub("", text, count=1)
        words = OPENING.sub("", words, count=1) or words
        if not text.startswith(words):
            return False
        rest = text[len(words) :]
        if is_withdrawn(rest) or re.search(rf"\b(?:or|{DOUBTS})\b|\?", EXPLAINS.split(rest)[0]):
            return False
        return bool(
            re.fullmatch(r"[\s.!*]*", rest)
            or re.match(rf"\s*(?:[,;:(]|-+)?\s*(?:{EXPLAINS.pattern})", rest)
            or re.match(rf"(?:\s*[,;:(]\s*(?:{FUNCTION_WORDS}\b|[-$\d])|\s{VERBS}\b)", rest)
        )


def read_label(expected: str) -> Reading | None:
    """The letter, time or words that an expected answer, in plain LaTeX, is; else None."""
    text = bare(expected)
    if letter := LETTER.fullmatch(text):
        return Choice((letter[1] or letter[2]).upper())
    clock = CLOCK.fullmatch(re.sub(r"^at\s", "", text))
    if clock and (time := read_clock(clock)):
        return time
    if WORDS.fullmatch(text) and not _is_product(text, expected):
        return Words(text)
    return None


def _is_product(text: str, expected: str) -> bool:
    """Whether letters are variables: one, or a few in which no word could be."""
    if "\\text" in expected:
        return False
    letters = re.fullmatch(r"[A-Za-z](?:[ ()'-]*[A-Za-z]){0,2}", text) is not None
    return letters and (len(text) == 1 or not re.search(r"[aeiou]", text, re.I))


def read_clock(match: re.Match) -> Time | None:
    """The time that a match of ``CLOCK`` is; None if it is a mere number."""
    hour, minute, second = int(match["h"]), int(match["m"] or 0), int(match["s"] or 0)
    half = (match["half"] or "").lower()
    if hour > 24 or minute > 59 or second > 59 or not (match["m"] or half):
        return None
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "p" else 0)
    return Time(hour * 3600 + minute * 60 + second, half)


def last_line(claim: Claim) -> str:
    """What a claim says in words: all of it, or of an unmarked text its last line."""
    return claim.text if claim.form != "last" else claim.text.rstrip().rpartition("\n")[2]


def unwrapped(text: str) -> str:
    r"""Without ``\text``, braces and dollar signs."""
    return " ".join(re.sub(r"\\text\b|[{}$]|\\(?=[()\[\]])", " ", text).split())


def bare(text: str) -> str:
    """Without what words are set in: markup, quotation marks, a full stop."""
    text = unwrapped(re.sub(r"\*\*|__|`", "", text)).strip("\"'*_ ")
    return text[:-1].strip("\"'*_ ") if text.endswith(".") else text


def folded(text: str) -> str:
    return " ".join(text.casefold().replace("-", " - ").split())

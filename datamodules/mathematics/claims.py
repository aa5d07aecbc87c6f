r"""Which words of a response are its answer.

The last thing that is *claimed* counts: ``\boxed{..}``, ``#### ..``, ``<answer>``, ``Answer: ..``,
"the answer is ..", because who marks an answer commits to it; where nothing is marked, the last
value of the text, because worked solutions end on their result. What is denied ("the answer is not
4") or taken back ("wait, no: 6") is not claimed. Boxes side by side are one claim, a list. Thoughts
(``<think>``) are never claims, and a thought that does not end leaves nothing.
"""

import re
from dataclasses import dataclass

from datamodules.mathematics.typography import plain_characters
from datamodules.mathematics.values import LONGEST, SCALE

THOUGHT = re.compile(
    r"[<\[◁](?P<end>/?)(?P<tag>think|thinking|thoughts?|reasoning|reflection|scratchpad|analysis)"
    r"[>\]▷]|<\|(?:begin|(?P<ends>end))_of_(?P<name>thought)\|>",
    re.I,
)
LOOK_AT = 20_000
"""Last characters of a response that are read: an answer stands at its end."""
TURN_END = re.compile(
    r"(?<=\S)\s*(?:<\|(?:im_start|im_end|eot_id|endoftext|end)\|>|</s>|<end_of_turn>)"
)
"""Tokens that end a turn: what follows is no part of the response."""
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
ANSWER = (
    r"(?:\b(?:final\s)?(?:answers?|ans|r[ée]ponse|respuesta|antwort|resposta|risposta|ответ)\b"
    r"|答案|答え)"
)
IS = r"(?:\b(?:is|are|was|be|equals|est|es|ist|sind)\b|是|为|為|:|=>?|->)"
MARK = re.compile(
    rf"(?P<heading>^[ #*_>]*(?:the\s)?(?:final\s)?answers?[ *_:]*$)"
    rf"|(?P<box>\\(?:boxed|fbox|framebox)(?![A-Za-z]))|(?P<hash>####+)|(?P<tag><answer>)"
    rf"|(?P<said>{ANSWER}[^\n.:=?!]{{0,60}}?{IS}(?:[\s*_]{{0,3}}{IS})*)"
    rf"|(?P<corrected>\b(?:wait|actually|no(?=[,.:;!])|correction|sorry|oops|hmm|scratch\sthat|on\ssecond\sthought"
    r"|i\smeant?|or\srather|make\s(?:that|it))\b[,.:;!\s-]{1,4}(?:(?:no|so|it|that|this|is|it's|that's"
    r"|should|must|be|the|value|result|i|think|mean|meant|make|rather|actually)\b[,.:\s]{1,3}){0,8}"
    r"(?=[-$\d\\(]|(?-i:[B-HJ](?![\w'])|[AI](?=[.)]*\s*$))))",
    re.I | re.MULTILINE,
)
DENIED = re.compile(
    rf"\b(?:incorrect|wrong|false|bad)\s(?:final\s)?answer\b(?P<a>(?:[^\n.]|\.(?=\d))*)"
    rf"|{ANSWER}[^\n.:=?!]{{0,40}}?(?:\b(?:is|are|was|be|can|could|should|would|will|must|does|do)"
    r"\s?not\b|\b\w+n't\b|\bcan't\b|\bnever\b)(?P<b>(?:[^\n.,;]|\.(?=\d)|,(?=\s?\d|\s(?:or|nor|and)\b))*)",
    re.I,
)
BUT = re.compile(r"\b(?:but|rather)\b", re.I)
WITHDRAWN = re.compile(
    r"\b(?:wait|actually|hmm|oops|sorry)\b[^\n]{0,40}?\b(?:wrong|incorrect|mistake|error|no|not\sright"
    r"|not\scorrect)\b|\b(?:that|this|it|which|answer)(?:'s|\sis|\swas)\s(?:wrong|incorrect|false"
    r"|a\smistake|not\s(?:right|correct|true|the\sanswer))\b",
    re.I,
)
GOES_ON = re.compile(
    r"[\s.$*)]*(?:(?:or|alternatively|otherwise|maybe|perhaps|possibly)\b[^\n]{0,60}"
    r"|\n[\s*$-]*-?[\d.,/%]{1,40}[\s*$]*(?:\n|$))",
    re.I,
)
JOINED = re.compile(
    r"(?:[\s$,;&|/.]|[A-Za-z](?:_\{?\w\}?)?\s*=|\\[ ,;()\[\]]|\\q?quad"
    r"|\\text\s?\{\s*(?:or|and)\s*\}|\b(?:or|and|maybe|perhaps|also)\b)*",
    re.I,
)
BEFORE_BOX = re.compile(
    r"(?:[-+*/^_<>|&\d!]|\\(?:times|cdot|div|pm|leq?|geq?|neq?|frac\s?\{[^{}]*\}|sqrt))\s*[{($]*$"
    r"|\b(?:not|n't|never|wrong|incorrect|or)\s*[($\\]*$|n't(?:\sbe)?\s*[($\\]*$",
    re.I,
)
BEHIND_BOX = re.compile(
    r"[$\s})\\\]]*(?:[*+/^_!<>|?]|-\s?\d|\\(?:times|cdot|div|pm|leq?|geq?|neq?)\b|\b(?:and\s(?:a|an|one)\s"
    r"|out\sof|(?:is|was)\s(?:wrong|incorrect|not))\b)|\d|\.\d|[A-Za-z]"
    r"|[$\s})\\\],;(]*\b(?:or|alternatively|maybe|perhaps|possibly|to\s\d)\b"
)
DISPLAYED = re.compile(r"\$\$(.{1,400}?)\$\$|\\\[(.{1,400}?)\\\]", re.DOTALL)
SENTENCE_END = re.compile(r"\n|</\w|\.(?=\s|$|\*)")
SHORTENED = re.compile(
    r"\b(?:[ap]\.m|rs|no|ca|approx|ft|in|lbs?|oz|hrs?|mins?|secs?|yds?|mi|sq|cu|st|dr|mr|mrs|vs|e\.g|i\.e)$",
    re.I,
)
LEAD = re.compile(r"^(?:[ \n*:#]|_(?!\{))+")
LEADS_ON = re.compile(
    r"(?:[\s*_$:,]|\b(?:so|thus|therefore|hence|the|my|our|final|correct|right)\b)*", re.I
)
HEADING = re.compile(r"\s*(?:step|part|case|solution|explanation|method)\b", re.I)


@dataclass(frozen=True)
class Claim:
    """The words that a response commits to, or its whole text where it marks none."""

    text: str
    form: str
    """``boxed``, ``said``, or ``last`` for the last value of an unmarked text."""


def final_claim(response: str) -> Claim | None:
    """What ``response`` claims; None if that is nothing. Its characters are plain ones."""
    text = without_thoughts(TURN_END.split(response, maxsplit=1)[0]).strip()
    text = plain_characters(text[-LOOK_AT:])
    text, denials = _without_denials(DISPLAYED.sub(_in_line, text))
    claim, start, end = None, 0, 0
    for mark in MARK.finditer(text):
        if claim is not None and mark.start() < end:  # within a claim: is it that one's words?
            leads_on = mark["said"] and LEADS_ON.fullmatch(text[start : mark.start()])
            if claim.form == "boxed" or not (mark["box"] or leads_on):
                continue
        if mark["corrected"] and claim is None:
            continue
        said = _boxed(text, mark) if mark["box"] else _said(text, mark)
        if said is not None:
            claim, start, end = said[0], mark.end(), said[1]
    if claim is None:
        return Claim(text, "last") if text else None
    behind = text[end : end + 150]
    if WITHDRAWN.search(behind):
        return None
    if any(at >= end - 1 and _same(denied, claim.text) for at, denied in denials):
        return None
    if more := GOES_ON.match(behind):
        return Claim(f"{claim.text} or {more[0].strip()}", claim.form)
    return claim


def without_thoughts(text: str) -> str:
    """``text`` outside of its thoughts. One may begin in the prompt, and may not have ended."""
    kept, start, thinking = "", 0, ""
    for match in THOUGHT.finditer(text):
        tag = (match["tag"] or match["name"]).lower()
        if not (match["end"] or match["ends"]):
            if not thinking:
                kept, thinking = kept + text[start : match.start()], tag
        elif thinking in (tag, ""):
            kept, thinking = kept if thinking else "", ""
        start = match.end()
    return kept if thinking else kept + text[start:]


def _in_line(match: re.Match) -> str:
    return f"${' '.join((match[1] or match[2] or '').split())}$"


def _without_denials(text: str) -> tuple[str, list[tuple[int, str]]]:
    """``text`` without what it calls wrong, and where that stood in the text that is left."""
    kept, start, denials = [], 0, []
    for match in DENIED.finditer(text):
        if match.start() < start:
            continue
        said = match["a"] or match["b"] or ""
        but = BUT.search(said)
        kept.append(text[start : match.start()])
        start = match.end() - (len(said) - but.end() if but else 0)
        denials.append((sum(map(len, kept)), said[: but.start()] if but else said))
    return "".join([*kept, text[start:]]), denials


def _same(denied: str, said: str) -> bool:
    def bare(text: str) -> str:
        return re.sub(r"[^\w.]|\.$", "", text).casefold()

    return bare(denied) == bare(said)


def _boxed(text: str, mark: re.Match) -> tuple[Claim, int] | None:
    """The boxes that begin at a mark, as one claim."""
    said, at, joined = [], mark.start(), ""
    while (box := BOX.match(text, at)) is not None:
        content, end = _argument(text, box.end())
        if content is None or len(content) > LONGEST:
            return None
        content = re.sub(r"\\(?:boxed|fbox|framebox)\s*\{(.*)\}", r"\1", content)
        if joined and content.strip() not in said:
            said.append("or" if re.search(r"or|maybe|perhaps", joined, re.I) else ",")
        if content.strip() not in said:
            said.append(content.strip())
        gap = JOINED.match(text, end)
        at, joined, last = gap.end(), gap[0] + " ", end
        if len(said) > 20:
            return None
    if not any(said):
        return None
    before = text[max(mark.start() - 60, 0) : mark.start()].rpartition("\n")[2]
    behind = re.sub(r"\\text\s?\{([^{}]*)\}", r" \1 ", text[last : last + 60])
    behind = re.sub(r"\*\*|__", " ", behind)
    before = re.sub(r"^\s*[-*+]\s+|\*\*|__", " ", before)
    before = re.sub(r"\$|\\[(\[]|\\(?:displaystyle|quad|qquad|large|Large)\b", " ", before)
    claimed = " ".join(said)
    if scale := SCALE.match(re.sub(r"^[$\\)\s]*", " ", behind)):
        claimed = f"{claimed} {scale[0]}"
    elif BEFORE_BOX.search(before) or BEHIND_BOX.match(behind):
        claimed = f"? {claimed} ?"  # one part of a larger expression
    return Claim(claimed, "boxed"), last


def _argument(text: str, at: int) -> tuple[str | None, int]:
    r"""What ``\boxed`` frames: a group, or one character; None if a brace never closes."""
    if text[at : at + 1] != "{":
        token = re.compile(r"\S").match(text, at)
        return (token[0], token.end()) if token else (None, at)
    depth = 0
    for match in re.compile(r"(?<!\\)[{}]").finditer(text, at, at + LONGEST + 2):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[at + 1 : match.start()], match.end()
    return None, at


def _said(text: str, mark: re.Match) -> tuple[Claim, int] | None:
    """What stands behind a mark, up to the end of the sentence, line or tag."""
    start = mark.end() + len(text[mark.end() :]) - len(LEAD.sub("", text[mark.end() :], count=1))
    after = text[start : start + LONGEST]
    if mark["tag"] and "</" in after:
        said = after.partition("</")[0].strip()
    elif mark["hash"] and HEADING.match(after):
        return None
    else:
        said = _sentence(after)
        if mark[0][-1].isalpha():  # within a sentence, where it is no factorial
            said = said.rstrip().rstrip("!")
    if not said.strip("*_ .$"):
        return None
    return Claim(_without_ends(said.strip()), "said"), start + len(said)


def _without_ends(said: str) -> str:
    """``said`` without the ends of quotations and brackets that began before it."""
    for opening, closing in ("{}", "()", "[]", '""'):
        if said.endswith(closing) and said.count(opening) < said.count(closing) + (closing == '"'):
            said = said.removesuffix(closing).rstrip()
    return said


def _sentence(text: str) -> str:
    """``text`` up to the end of its first sentence or line; those of short forms end none."""
    for match in SENTENCE_END.finditer(text):
        if match[0] != "." or not SHORTENED.search(text[max(match.start() - 8, 0) : match.start()]):
            return text[: match.start()]
    return text

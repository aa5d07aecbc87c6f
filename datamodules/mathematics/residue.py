r"""The one number that a claim states: what stands around it must not make it another.

A unit, a currency, the closing prose of a sentence change nothing. An inequality, an operation
still to be done, a second number, an alternative, a doubt, a part (``and a half``), a share
(``out of 8``), a retraction do, and such a claim states no number. English has few words that do
this (its function words); they are listed here by what they do.
"""

import re
import unicodedata

from datamodules.mathematics.values import Found, Number, find_numbers, read_number

RELATION = re.compile(
    r"[<>]|\\(?:leq|geq|neq|in|notin|ll|gg|subset|to|mapsto|not|prec|succ|mid|pm|mp)\b"
)
EQUALS = re.compile(r"\s?(?:\\approx|(?<![<>!:=])==?(?![=<>])|\\equiv)\s?")
STARTS = re.compile(
    r"^(?:[\s*#\"'`:=~(]|_(?!\{)|\\(?:therefore|approx|sim|implies|qquad)\b|-\s*(?=[a-z]{2}))+",
    re.I,
)
DENIES = r"(?:not|never|cannot|\w+n't|neither|nor|no longer|without)"
NOT_BUT = re.compile(r"\bnot\b[^.,;\n]{1,60}?[,;]?\s*\b(?:but(?: rather)?|it(?:'s| is))\s", re.I)
DOUBTS = (
    r"(?:maybe|perhaps|possibly|probably|presumably|either|unsure|uncertain|guess\w*"
    r"|not\s(?:sure|certain))"
)
DENIED_BEFORE = re.compile(
    rf"\b{DENIES}\b[^,;:.=]*$|\b{DOUBTS}\b|\b(?:(?:might|could|may)(?:\sbe)?|or)\s*"
    r"(?:[A-Za-z](?:_\{?\w+\}?)?\s?=\s?)?$",  # or x =
    re.I,
)
COMPARES = (
    r"(?:greater|less|more|fewer|larger|smaller|bigger|higher|lower|longer|shorter|older|younger)"
)
CHANGED_BEFORE = re.compile(
    rf"\b(?:{COMPARES}(?:\s(?:than|or|equal|to))*|than|exceed\w*|above|below|under|over|beyond|between"
    r"|at\s(?:least|most)|up\sto|nearly|almost|within|upwards\sof|half(?:\sof)?|twice|thrice|double"
    r"|triple|quarter\sof|thirds?\sof|halves\sof|(?:root|cube|square|sum|product|difference|log"
    r"|logarithm|factorial|reciprocal|inverse|negative|opposite|multiple|power|factor|divisor|fraction|part|percent|percentage|share|portion)\sof|squared?|plus|minus|times"
    r"|(?:divided|multiplied)\sby|per|one|two|three|four|five|six|seven|eight|nine|ten|hundred|thousand|million"
    r"|any\w*\s(?:but|except)|except|except\sfor|other\sthan|base)(?:\s(?:of|the|a|an|about|only))*[\s$(\"']*$",
    re.I,
)
OPERATES = re.compile(r"[-+*/^_\\<>|!&@%]\s*[($]*$|(?<=\w)\($")
IN_WORDS = (
    r"(?:half|halves|elevenths?|twelfths?|(?:thir|four|fif|six|seven|eigh|nine)teenths?"
    r"|(?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)ieths?|thirds?|quarter|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"
    r"|tens|hundredths?|thousandths?|millionths?|hundreds?|thousands?|millions?|billions?|trillions?|dozens?"
    r"|lakhs?|crores?)"
)
CHANGED_BEHIND = re.compile(
    rf"\b(?:{IN_WORDS}|squared|cubed|factorial|remainder|mod|modulo|or|{DOUBTS}|alternatively|otherwise"
    r"|at\s(?:least|most)|minimum|maximum|plus|minus|times\s\d|below\szero|under\szero"
    rf"|and\s(?:up|above|over|below|under|{COMPARES})|(?:up|down)(?:wards)?$|{COMPARES}\sthan"
    r"|(?:is|are|was|were|seems|looks)\s(?:\w+\s)?(?:wrong|incorrect|false)|(?:is|are|was|were)(?:n't|\snot)"
    r"|wrong|incorrect|to\sthe\s\w+|choose|if|unless|something|ish|then\ssome"
    r"|(?:divided|multiplied|raised|increased|decreased|reduced)\sby)\b|\br\s?\d",
    re.I,
)
REASON = (
    r"\b(?:because|since|given|due|where(?:as)?|which|who|whose|that|after(?!\s\d)|according|based|calculated"
    r"|computed|obtained|found|using|via|rounded|as(?!\s(?:well|much|many)))\b"
)
EXPLAINS = re.compile(rf"{REASON}|\b(?:not(?!\s(?:sure|certain))|rather\sthan|instead\sof)\b", re.I)
WITHDRAWN = re.compile(
    r"(?:[^,;:(.]|[.,](?=\d))*?\b(?:is|are|was|were|seems|looks|would be)"
    r"(?:n't|\s(?:\w+\s)?(?:not|wrong|incorrect|false))\b",
    re.I,
)
LINKS = r"(?:of|out|in|on|at|for|from|during|by|per|within|each|every|to\sthe)"
SHARES = r"(?:of|out|in|to)"
UNIT = (
    r"(?:sq|cu|square|cubic|cm|mm|km|dm|nm|kg|mg|ml|mL|kL|cl|cL|dl|dL|ft|in|yd|mi|lb|lbs|oz|hr|hrs|min"
    r"|mins|sec|secs|ms|day|yr|yrs|mph|kph|kmh|gal|pt|qt|GB|MB|KB|TB|Hz|kHz|MHz|GHz|kW|MW|mW|kJ|Pa|kPa"
    r"|mol|rad|deg|USD|EUR|GBP|INR|CNY|JPY|Rs|cts|ha|eV|men|pcs|pts|rpm|bps|cc)"
)
PROSE_LETTER = re.compile(r"[mgshLl](?![\w'])|[aAI](?=\s\w)")
DEGREES = re.compile(r"^\s?\^\{\s?(?:\\circ|o|0)\s?\}\s?[CFK]?(?![A-Za-z])")
ORDINAL = re.compile(r"^(?:st|nd|rd|th)\b")


def stated_numbers(claim: str, formal: bool) -> list[Number]:
    """The number that a claim in plain LaTeX states; two where one is rounded; [] if none.

    Args:
        formal: the claim is a formula, in which bare letters are variables, and no sentence.
    """
    claim = NOT_BUT.sub(" ", spoken(claim))
    if is_withdrawn(claim):
        return []
    claim = explained(claim)
    sides = [side.strip() for side in EQUALS.split(STARTS.sub("", claim))]
    sides = [side for side in sides if side] or [""]
    if len(sides) == 1:
        number = one_number(sides[0], formal)
        return [number] if number else []
    first, *middle, last = sides
    if any(re.search(r",(?!\d{3})|;|\bor\b|\band\b", side) for side in middle):
        return []  # x = 2, y = 3
    if is_name(last) and not middle:  # 5 = x
        number = one_number(first, formal)
        return [number] if number and not _is_unsolved(last) else []
    number = one_number(last, formal)
    if number is None or _is_unsolved(first) or RELATION.search(" ".join([first, *middle])):
        return []
    if re.search(r"[,;]\s*[A-Za-z](?:_\{\w*\})?$|\bor\b", first):
        return []
    return _agreeing([*filter(None, map(read_number, (first, *middle))), number], last)


def is_withdrawn(text: str) -> bool:
    """Whether what follows a value calls it wrong."""
    match = WITHDRAWN.match(text)
    return match is not None and not re.search(REASON, match[0], re.I)


def explained(claim: str) -> str:
    """``claim`` up to the words that explain its value."""
    for match in EXPLAINS.finditer(claim):
        if re.search(r"\d", claim[: match.start()]):
            return claim[: match.start()]
    return claim


def _agreeing(numbers: list[Number], last: str) -> list[Number]:
    """All of a chain's numbers, if the last is what the others are, rounded."""
    *others, number = numbers
    decimals = max((found.decimals for found in find_numbers(last)), default=0)
    for other in others:
        if not other.same(number) and abs(other.value - number.value) >= (10**-decimals or 1):
            return []
    return numbers


def one_number(text: str, formal: bool, alone: bool = True) -> Number | None:
    """The number of ``text`` if it is one, and nothing makes it another.

    Args:
        alone: it is the first number and no other may stand beside it; else the last.
    """
    if (whole := read_number(text)) is not None:
        return whole
    found = find_numbers(text)
    if not found:
        return None
    which = found[0] if alone else found[-1]
    before, behind = text[: which.start], text[which.end :]
    if which.number is None or not _fits_before(before, formal, alone):
        return None
    return which.number if _fits_behind(behind, which, formal) else None


def _fits_before(before: str, formal: bool, alone: bool) -> bool:
    bare = re.search(r"(?<![\x01\w])[A-Za-z]{1,3}(?![\w'])", before) if formal else None
    before = before.rpartition("?")[2].replace("\x01", "")
    if CHANGED_BEFORE.search(before[-80:]) or OPERATES.search(before[-8:]):
        return False
    if DENIED_BEFORE.search(before[-200:]):
        return False
    if any(map(_is_sign, before[-3:])):
        return False
    if not alone:
        return True
    if any(map(_is_sign, before)):
        return False
    if RELATION.search(before) or re.search(r"[+*/^_\\|{}\[\]@&]", before):
        return False
    return bare is None


def _fits_behind(behind: str, which: Found, formal: bool) -> bool:
    """Whether unit and prose behind a number leave it what it is."""
    if is_withdrawn(behind) or unicodedata.category(behind[:1] or " ") in ("Mn", "Me"):
        return False
    behind = re.sub(r"[$`\"*]|\\(?:qquad|quad)\b", "", behind)
    behind = DEGREES.sub(" degrees ", ORDINAL.sub("", behind, count=1), count=1)
    behind = re.sub(r"(?<=[A-Za-z])\s?\^\{-?\d\}", "", behind)  # cm^2
    behind = re.sub(r"(?<=[A-Za-z])\s?(?:/|\\cdot|-)\s?(?=[\x01A-Za-z])", " ", behind)  # km/h
    if not formal:
        behind = re.sub(r"(?<=[A-Za-z])\s?!+", ".", behind)
        behind = re.sub(r"^\s?/\s?(?=[A-Za-z]{2})", " per ", behind)
    clauses = re.split(r"\s*(?:[,;:(]|\s-+\s)\s*", behind)
    rest = 0
    for index, clause in enumerate(clauses):
        rest += len(clause)
        head = EXPLAINS.split(clause)[0]
        if not _harmless(head, which, formal, index):
            return False
        if head != clause:
            return True
    return True


def _harmless(clause: str, which: Found, formal: bool, index: int) -> bool:
    """Whether a clause behind a number leaves it what it is."""
    spoken = clause.replace("\x01", "")
    if CHANGED_BEHIND.search(spoken) or RELATION.search(spoken) or any(map(_is_sign, spoken)):
        return False
    if re.search(r"[+*/^_\\|{}<>=~!?&@%#\[\]]|^-" + r"|^\.\." * formal, spoken):
        return False
    if index == 0 and not _is_unit(clause, formal):
        return False
    others = find_numbers(clause)
    if all(other.number and other.number.same(which.number) for other in others):
        return index > 0 or not others
    # another number belongs to a phrase that tells more of what was counted: 5 apples of 12
    lead = clause[: others[0].start]
    return (
        index == 0
        and re.match(rf"[\s\x01]*(?!{SHARES if which.is_money else LINKS}\b)\w", lead) is not None
        and re.search(rf"\b{LINKS}\b", lead) is not None
        and not re.search(r"\band\b\D{0,3}\d|\bto\s\d|[-]\d", clause)
    )


def _is_unit(clause: str, formal: bool) -> bool:
    """Whether what follows a number directly can be a unit: in a formula letters are variables."""
    if not formal:
        word = re.match(r"\s?([A-Za-z]+)", clause)
        if word is None or len(word[1]) > 2 or re.fullmatch(UNIT, word[1]):
            return True
        if PROSE_LETTER.match(clause.lstrip()):
            return True
        return len(word[1]) == 2 and clause[:1] == " "
    bare = re.findall(r"(?<![\x01A-Za-z])[A-Za-z]+", clause)
    return all(len(word) > 3 or re.fullmatch(UNIT, word) for word in bare) or (
        bool(re.match(r"\s[A-Za-z]{4}", clause)) and all(len(word) > 1 for word in bare)
    )


def _is_sign(character: str) -> bool:
    """Whether a character is a sign of mathematics that ``typography`` has no LaTeX for."""
    return not character.isascii() and unicodedata.category(character) == "Sm"


def is_name(side: str) -> bool:
    """Whether a side of an equation is a name of what is asked: ``x``, ``f(2)``, words."""
    side = re.sub(r"_\{\w*\}|\(\w\)", "", side)
    return re.fullmatch(r"[\x01A-Za-z][\x01A-Za-z' ]*|\\[a-z]+\s?", side) is not None


def _is_unsolved(side: str) -> bool:
    """Whether a side is an expression of a variable and numbers, as ``2x`` in ``2x = 8``."""
    side = re.sub(r"_\{[^{}]*\}|[A-Za-z]\([^()]*\)|\\[A-Za-z]+|\^\{\s?\\circ\s?\}", " ", side)
    if re.search(r"[A-Za-z]{2}", side):  # words
        return False
    side = re.sub(r"(?<=\d)\s?x\s?(?=\d)", " ", side)  # 2 x 3
    return re.search(r"[A-Za-z]", side) is not None and re.search(r"\d", side) is not None


def spoken(text: str) -> str:
    r"""Words of ``\text{..}`` behind a mark, which tells them from variables; no emphasis."""
    text = re.sub(
        r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}",
        lambda match: " " + re.sub(r"(?<![A-Za-z])(?=[A-Za-z])", "\x01", match[1]) + " ",
        text,
    )
    text = re.sub(r"(?<![\d)}])\*\*|\*\*(?!\s?[\d(])", "", text.strip("*` "))
    text = re.sub(r"^_+(?![_{])|_+$", "", text)
    return re.sub(r"(?<=[\d}])\s+(?=\^\{)", "", text)

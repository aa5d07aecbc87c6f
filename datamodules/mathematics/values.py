r"""Numbers: from a text in plain LaTeX (see ``typography``) to an exact value.

A number is a sign, a currency, digits, and what scales them::

    number   = [sign] [currency] [sign] unsigned [magnitude]... [percent]
    unsigned = digits ["." digits] [power of ten] | digits "/" digits | digits " " digits "/" digits
             | \frac{number}{number} | digits \frac{..}{..} | 10^{digits} | 0.\overline{digits}

Digits may stand in groups (``1,000``; ``1,00,000``). A division that comes out even (``8/2``) is
still to be done and is no number; the same holds for sums, roots and powers but those of ten.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 300
"""Characters of an answer; longer ones are none."""
LARGEST_POWER = 999
"""Of ten, in a number."""

MAGNITUDES = {
    "hundred": 2,
    "thousand": 3,
    "thou": 3,
    "grand": 3,
    "lakh": 5,
    "lac": 5,
    "million": 6,
    "mil": 6,
    "mln": 6,
    "crore": 7,
    "billion": 9,
    "bln": 9,
    "trillion": 12,
    "quadrillion": 15,
    "quintillion": 18,
    "k": 3,
    "m": 6,
    "b": 9,
    "bn": 9,
    "mn": 6,
    "t": 12,
    "百": 2,
    "千": 3,
    "万": 4,
    "萬": 4,
    "亿": 8,
    "億": 8,
}
"""Words, and letters that stand right behind the digits, as powers of ten."""
DOZEN = Fraction(12)
PARTS = {
    "half": Fraction(1, 2),
    "third": Fraction(1, 3),
    "quarter": Fraction(1, 4),
    "fourth": Fraction(1, 4),
    "fifth": Fraction(1, 5),
    "two thirds": Fraction(2, 3),
    "three quarters": Fraction(3, 4),
    "three fourths": Fraction(3, 4),
}
CURRENCIES = "".join(map(chr, (0x24, 0xA2, 0xA3, 0xA4, 0xA5, 0xE3F, *range(0x20A0, 0x20C1))))

BEFORE = re.compile(
    rf"(?P<outer>[-+]|\b(?:minus|negative)\b)?\s?(?:(?P<money>[{CURRENCIES}])\s?(?P<inner>[-+])?)?\s?$",
    re.I,
)
DIGITS = re.compile(
    r"(?P<whole>\d{1,3}(?:[,']\d{3})+(?![,']?\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!,?\d)|\d+)?"
    r"(?:\.(?P<decimals>\d+))?(?P<bar>\.?\\(?:overline|bar)\{\d+\})?"
)
POWER = re.compile(
    r"[eE](?P<e>[-+]?\d{1,4})(?!\d)"
    r"|\s?(?:\\times|\\cdot|\*|x)\s?10(?:\^\{\s?(?P<k>[-+]?\d{1,4})\s?\}|\*\*(?P<p>[-+]?\d{1,4})(?!\d))"
)
TEN = re.compile(r"\^\{\s?(?P<k>[-+]?\d{1,4})\s?\}|\*\*(?P<p>[-+]?\d{1,4})(?!\d)")
MIXED = re.compile(r"\s(?P<above>\d+)\s?/\s?(?P<below>\d+)(?![\d.,/])")
BELOW = re.compile(r"\s?/\s?(?P<below>-?\d{1,3}(?:,\d{3})+(?!\d)|-?\d+)(?![.,]?\d|\s?/\s?\d)")
SCALE = re.compile(
    r"(?:[\s\x01]*\x01)?(?P<letter>(?:[kKMBT]|bn|mn)(?![A-Za-z]))"
    r"|[\s\x01]*-?(?P<word>hundred|thou(?:sand)?|grand|lakh|lac|mil(?:lion)?|mln|crore|billion|bln"
    r"|trillion|quadrillion|quintillion|dozen)s?\b"
    r"|\s?(?P<sign>[百千万萬亿億])",
)
AND_PART = re.compile(
    rf"[\s\x01]+and[\s\x01]+(?:an?[\s\x01]+|one[\s\x01-]+)?(?P<part>{'|'.join(PARTS)})s?\b"
)
PERCENT = re.compile(r"[\s\x01$]*%|[\s\x01]*-?(?:percent|per cent|pct)\b", re.I)
GLUED = re.compile(r"[.,:]\d|\d|'\d")
"""What goes on behind a number and makes it another: a version, a time, a date."""
GLUED_ON = re.compile(r"[\d.,:']*\d")
ANCHOR = re.compile(r"(?<![A-Za-z0-9_\\])(?=\d|\\frac\{)|(?<![\w.])(?=\.\d)|(?<=\d)(?=\\frac\{)")


@dataclass(frozen=True)
class Number:
    """An exact value; 50% is 50 with ``percent``."""

    value: Fraction
    percent: bool = False

    def same(self, other: "Number") -> bool:
        """Equal; a percent sign may also be a unit that the other side leaves out."""
        if self.percent == other.percent or self.value == other.value:
            return self.value == other.value
        percent, plain = (self, other) if self.percent else (other, self)
        return percent.value / 100 == plain.value


@dataclass(frozen=True)
class Found:
    """A number in a text: where, and its value; None if it is none that can be read."""

    start: int
    end: int
    number: Number | None
    decimals: int = 0
    is_money: bool = False


def read_number(text: str) -> Number | None:
    """The number that the whole of ``text``, in plain LaTeX, is."""
    text = text.strip().strip("$").strip()
    while len(text) > 2 and (text[0], text[-1]) in {("(", ")"), ("{", "}")}:
        if closing(text, 1) != len(text) - 1:
            break
        text = text[1:-1].strip()
    sign = re.match(r"([-+])\s?(?=[({])", text)  # -(5)
    if sign and (inner := read_number(text[sign.end() :])) is not None:
        return inner if sign[1] == "+" else Number(-inner.value, inner.percent)
    found = find_numbers(text)
    if len(found) != 1 or (found[0].start, found[0].end) != (0, len(text)):
        return None
    return found[0].number


def find_numbers(text: str) -> list[Found]:
    """All numbers of ``text``, from left to right, without overlap."""
    found: list[Found] = []
    end = 0
    while (anchor := ANCHOR.search(text, end)) is not None:
        at = anchor.start()
        start, negative = _signs(text, at, end)
        value, after, decimals = _unsigned(text, at)
        value, after = _scaled(text, value, after)
        percent = PERCENT.match(text, after)
        after = percent.end() if percent else after
        number = None
        if GLUED.match(text, after):
            after = GLUED_ON.match(text, after).end()
        elif value is not None and after - start <= LONGEST:
            number = Number(-value if negative else value, bool(percent))
        is_money = any(c in CURRENCIES for c in text[start:at])
        found.append(Found(start, after, number, decimals, is_money))
        end = max(after, at + 1)
    return found


def _signs(text: str, at: int, end: int) -> tuple[int, bool]:
    """Where the number begins whose digits begin at ``at``, and whether it is negative."""
    first = max(end, at - 24)
    match = BEFORE.search(text[first:at])
    start = first + match.start()
    outer, inner = match["outer"], match["inner"]
    if outer in ("-", "+"):
        where = first + match.start("outer")
        spaced = text[where + 1 : where + 2] == " "
        previous = text[:where].rstrip()[-1:]
        touches = previous != "" and text[where - 1 : where] != " "
        if re.match(r"[-+\d)%}\]^]", previous) or (
            previous.isalpha() and (spaced or touches)
        ):  # an operation or a hyphen, no sign
            return where + 1 + spaced, False
    start += len(text[start:at]) - len(text[start:at].lstrip())
    signs = [sign for sign in (outer, inner) if sign]
    return start, sum(sign != "+" for sign in signs) % 2 == 1


def _unsigned(text: str, at: int) -> tuple[Fraction | None, int, int]:
    """Value of the digits at ``at``, where they end, and how many are decimals."""
    if text.startswith("\\frac{", at):
        return *_fraction(text, at), 0
    match = DIGITS.match(text, at)
    after = match.end()
    if after - at > LONGEST:
        return None, after, 0
    value = _decimal(match)
    whole = match["decimals"] is None and match["bar"] is None
    if whole:
        if text.startswith("\\frac{", after) or text.startswith(" \\frac{", after):
            part, end = _fraction(text, after + (text[after] == " "))
            return (None if part is None or not 0 < part < 1 else value + part), end, 0
        if mixed := MIXED.match(text, after):
            part = _quotient(Fraction(int(mixed["above"])), int(mixed["below"]))
            return (None if part is None else value + part), mixed.end(), 0
    if value == 10 and whole and (power := TEN.match(text, after)):
        return _power(Fraction(1), power["k"] or power["p"]), power.end(), 0
    if power := POWER.match(text, after):
        return _power(value, power["e"] or power["k"] or power["p"]), power.end(), 0
    if below := BELOW.match(text, after):
        return _quotient(value, int(below["below"].replace(",", ""))), below.end(), 0
    return value, after, len(match["decimals"] or "")


def _decimal(match: re.Match) -> Fraction:
    whole = (match["whole"] or "0").replace(",", "").replace("'", "")
    decimals = match["decimals"] or ""
    value = Fraction(f"{whole}.{decimals or 0}")
    if match["bar"]:  # 0.\overline{3}
        digits = re.search(r"\d+", match["bar"])[0]
        value += Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(decimals))
    return value


def _power(value: Fraction, exponent: str) -> Fraction | None:
    return value * Fraction(10) ** int(exponent) if abs(int(exponent)) <= LARGEST_POWER else None


def _quotient(above: Fraction, below: int | Fraction) -> Fraction | None:
    """None where it comes out even: ``8/2`` is still to be worked out."""
    if below == 0 or (above / below).denominator == 1:
        return None
    return above / below


def _fraction(text: str, at: int) -> tuple[Fraction | None, int]:
    r"""Value of ``\frac{..}{..}`` at ``at``, and where it ends."""
    first = at + len("\\frac{")
    middle = closing(text, first)
    if text[middle + 1 : middle + 2] != "{":
        return None, middle
    last = closing(text, middle + 2)
    above, below = read_number(text[first:middle]), read_number(text[middle + 2 : last])
    if above is None or below is None or above.percent or below.percent:
        return None, last + 1
    return _quotient(above.value, below.value), last + 1


def closing(text: str, at: int) -> int:
    """Where the bracket closes that was opened just before ``at``; the end if nowhere."""
    depth = 1
    for match in re.compile(r"[{}()]").finditer(text, at):
        depth += 1 if match[0] in "{(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _scaled(text: str, value: Fraction | None, after: int) -> tuple[Fraction | None, int]:
    """The value times the magnitude words behind it, and where these end."""
    while scale := SCALE.match(text, after):
        word = (scale["letter"] or scale["word"] or scale["sign"]).lower()
        if value is not None:
            value *= DOZEN if word == "dozen" else 10 ** MAGNITUDES[word]
        after = scale.end()
        if after > LONGEST + 10_000:
            break
    if part := AND_PART.match(text, after):
        value = None if value is None else value + PARTS[part["part"]]
        after = part.end()
    return value, after

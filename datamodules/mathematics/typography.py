r"""One spelling for all: Unicode, HTML and LaTeX that look alike become the same plain LaTeX.

Characters are told by their Unicode category, decomposition and name, not by lists: every dash and
minus is ``-``, every space a space, every digit 0 to 9, what is raised stands in ``^{..}``. Of
LaTeX, arguments get their braces (``\frac1{72}`` is ``\frac{1}{72}``), what only sets type goes
(``\left``, ``\,``, ``\mathbf``), and all that is upright text stands in ``\text{..}``.
"""

import html
import re
import unicodedata
from functools import lru_cache
from itertools import groupby

SIGNS = {
    "×": r"\times ",
    "÷": r"\div ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3] ",
    "∞": r"\infty ",
    "≤": r"\leq ",
    "⩽": r"\leq ",
    "≥": r"\geq ",
    "⩾": r"\geq ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "≃": r"\approx ",
    "≅": r"\approx ",
    "≡": r"\equiv ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "→": r"\to ",
    "⇒": r"\implies ",
    "∴": r"\therefore ",
    "ℝ": r"\mathbb{R}",
    "°": r"^{\circ}",
    "⁄": "/",
    "∕": "/",
    "、": ",",
    "٬": ",",
    "٫": ".",
    "。": ". ",
    "\t": " ",
    "\r": "\n",
    "\n": "\n",
}
GREEK = re.compile(r"GREEK (?:SMALL|CAPITAL) LETTER (\w+)$")
MARKUP = re.compile(
    r"</?(?:b|i|u|em|strong|p|br|span|div|code|sup|sub|center|mark)\b[^<>]{0,99}>", re.I
)

SPELLINGS = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "nicefrac": "frac",
    "sfrac": "frac",
    "le": "leq",
    "leqslant": "leq",
    "ge": "geq",
    "geqslant": "geq",
    "ne": "neq",
    "thickapprox": "approx",
    "simeq": "approx",
    "rightarrow": "to",
    "longrightarrow": "to",
    "Rightarrow": "implies",
    "Longrightarrow": "implies",
    "varnothing": "emptyset",
    "ast": "cdot",
    "fbox": "boxed",
    "framebox": "boxed",
    "lvert": "vert",
    "rvert": "vert",
}
TEXT = re.compile(r"text(?:bf|it|rm|tt|sf|normal)?|[mh]box|emph|mathrm")
"""Commands whose argument is upright: words and units."""
BARE = re.compile(
    r"math(?:bf|it|sf|tt|normal|op|strut)|boldsymbol|bm|u(?:nder)?line|ensuremath|num|strut|nobreak"
    r"|(?:text|display|script)style|left|right|[bB]igg?[lr]?|(?:no)?limits|q?quad|enspace|thinspace"
    r"|bf|rm|it|sf|tt|[lL]arge|LARGE|[hH]uge|small|normalsize"
)
"""Commands that set type and say nothing; an argument of theirs stays."""
DROPPED = {"color": 1, "hspace": 1, "vspace": 1, "phantom": 1, "textcolor": 1, "label": 1, "tag": 1}
"""Commands that go with so many arguments of theirs."""
ARGUMENTS = {"frac": 2, "sqrt": 1, "binom": 2, "dbinom": 2, "tbinom": 2, "overline": 1, "bar": 1}
ARGUMENTS |= {"boxed": 1, "begin": 1, "end": 1}
NAMED = {
    "degree": "^{\\circ}",
    "lt": "<",
    "gt": ">",
    "colon": ":",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "mid": r"\mid ",
}
TEX = re.compile(r"\\([A-Za-z]+)\*?|(\\.|[{}^_])|([^\\{}^_]+)", re.DOTALL)
ESCAPED = {f"\\{c}": c for c in "%$#&"} | {f"\\{c}": " " for c in "()[]"}
DEEPEST = 40
"""Braces within braces; deeper texts are no answers."""


class Unreadable(ValueError):
    """A text that is no answer in any notation."""


@lru_cache(maxsize=4096)
def _character(character: str) -> tuple[str, str]:
    """What a character is: ``super``, ``sub`` or plain, and how it is spelt."""
    if character in SIGNS:
        return "", SIGNS[character]
    category = unicodedata.category(character)
    name = unicodedata.name(character, "")
    kind, _, parts = unicodedata.decomposition(character).rpartition("> ")
    if kind == "<fraction":
        return "", " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    raised = {"<super": "super", "<sub": "sub"}.get(kind, "")
    if raised and parts:
        return raised, "".join(_character(chr(int(code, 16)))[1] for code in parts.split())
    if category == "Nd":
        return "", str(unicodedata.digit(character))
    if category == "Pd" or "MINUS SIGN" in name:
        return "", "-"
    if category in ("Zl", "Zp"):
        return "", "\n"
    if category in ("Zs", "Cc"):
        return "", " "
    if category == "Cf":
        return "", ""
    if category in ("Pi", "Pf"):
        return "", "'" if "SINGLE" in name else '"'
    if greek := GREEK.match(name):
        letter = greek[1].lower().replace("lamda", "lambda").replace("final sigma", "sigma")
        return "", f"\\{letter.capitalize() if 'CAPITAL' in name else letter} "
    if kind and parts:  # a compatibility form, as of a unit in one character
        return "", _spelt("".join(chr(int(code, 16)) for code in parts.split()))
    return "", unicodedata.normalize("NFKC", character)


def _spelt(text: str) -> str:
    pieces = []
    for raised, run in groupby(map(_character, text), key=lambda c: c[0]):
        said = "".join(piece for _, piece in run)
        raised = raised if said.strip("+-") else ""  # a sign alone is a sign
        pieces.append(f"{'^' if raised == 'super' else '_'}{{{said}}}" if raised else said)
    return "".join(pieces)


def plain_characters(text: str) -> str:
    """``text`` in ASCII where that has a character for it; lines and letters stay as they are."""
    if text.isascii():
        text = text if "\r" not in text and "\t" not in text else text.translate({13: 10, 9: 32})
    else:
        text = re.sub(r"(?<=\d)[\u00a0\u2000-\u200a\u202f](?=\d{3}(?!\d))", ",", text)
        text = _spelt(text)
    if "&" in text:
        text = html.unescape(text).replace("\u00a0", " ")
    if "~~" in text:  # struck out
        text = re.sub(r"~~[^~\n]{1,200}~~", " ", text)
    if "<" in text:
        text = MARKUP.sub(" ", re.sub(r"<sup>([^<>]{1,20})</sup>", r"^{\1}", text, flags=re.I))
    return text


def plain_latex(text: str) -> str:
    """``text``, of ``plain_characters``, with its LaTeX in one spelling.

    Raises:
        Unreadable: braces that do not match, or too deep.
    """
    text = re.sub(r"\{,\}|(?<=\d),\\!\s?|(?<=\d)\\[,;:! ](?=\d{3}(?!\d))", ",", text)
    text = re.sub(r"\s!=|(?<=[A-Za-z)])!=", r" \\neq ", text)
    text = re.sub(r"(?<!\\)\\[,;:! \n]|(?<!^)~", " ", text.replace("\\!", ""))
    text = text.replace(">=", r"\geq ").replace("<=", r"\leq ").replace("=<", r"\leq ")
    if "\\" not in text and not any(c in text for c in "^_{}"):
        return " ".join(text.split())
    tokens = [(m[1] or "", m[2] or "", m[3] or "") for m in TEX.finditer(text)]
    pieces, rest = _group(tokens, 0, 0)
    if rest != len(tokens):
        raise Unreadable("braces that do not match")
    return " ".join("".join(pieces).split())


Tokens = list[tuple[str, str, str]]
"""Command, special character, or other text: one of the three is not empty."""


def _group(tokens: Tokens, at: int, depth: int) -> tuple[list[str], int]:
    """Spelling of the tokens up to the brace that closes, and where that stands."""
    if depth > DEEPEST:
        raise Unreadable("braces within braces")
    said: list[str] = []
    while at < len(tokens) and tokens[at][1] != "}":
        if tokens[at][0] == "over":  # {1 \over 2}
            below, at = _group(tokens, at + 1, depth + 1)
            return [f"\\frac{{{''.join(said).strip()}}}{{{''.join(below).strip()}}}"], at
        piece, at = _item(tokens, at, depth)
        said.append(piece)
    return said, at


def _item(tokens: Tokens, at: int, depth: int) -> tuple[str, int]:
    """Spelling of one token with its arguments, and what follows it."""
    command, special, other = tokens[at]
    at += 1
    if special == "{":
        said, at = _group(tokens, at, depth + 1)
        if at == len(tokens):
            raise Unreadable("braces that do not match")
        return "{" + "".join(said) + "}", at + 1
    if special in ("^", "_"):
        argument, at = _argument(tokens, at, depth)
        return f"{special}{{{argument}}}", at
    if special:  # a backslash and a sign
        return ESCAPED.get(special, special), at
    return (other, at) if not command else _command(command, tokens, at, depth)


def _command(command: str, tokens: Tokens, at: int, depth: int) -> tuple[str, int]:
    command = SPELLINGS.get(command, command)
    if command in NAMED:
        return NAMED[command], at
    if BARE.fullmatch(command):
        if at < len(tokens) and tokens[at][1] == "{":
            argument, at = _argument(tokens, at, depth)
            return argument, at
        if command in ("left", "right") and at < len(tokens) and tokens[at][2][:1] == ".":
            tokens[at] = ("", "", tokens[at][2][1:])
        return " ", at
    if command in DROPPED:
        for _ in range(DROPPED[command]):
            _, at = _argument(tokens, at, depth)
        return " ", at
    if TEXT.fullmatch(command):
        argument, at = _argument(tokens, at, depth)
        inner = re.sub(r"\\text\{([^{}]*)\}", r"\1", argument)
        return (f"\\text{{{inner}}}" if re.search(r"[A-Za-z]", inner) else f" {inner} "), at
    said = f"\\{command}"
    if command == "sqrt" and at < len(tokens) and tokens[at][2].lstrip()[:1] == "[":
        index, closed, after = tokens[at][2].lstrip().partition("]")
        if closed:
            said, tokens[at] = f"{said}{index}]", ("", "", after)
            at += not after
    for _ in range(ARGUMENTS.get(command, 0)):
        argument, at = _argument(tokens, at, depth)
        said += f"{{{argument}}}"
    return said if command in ARGUMENTS else f"{said} ", at


def _argument(tokens: Tokens, at: int, depth: int) -> tuple[str, int]:
    """What TeX takes for an argument: a group, a command, or one character."""
    while at < len(tokens) and tokens[at][2] and not tokens[at][2].strip():
        at += 1
    if at == len(tokens) or tokens[at][1] == "}":
        raise Unreadable("a command without its argument")
    other = tokens[at][2].lstrip()
    if other:
        taken = 1 if other[0] not in "+-" else 2  # 10^-3, as people write it
        if taken == 2 or tokens[at - 1][1] in ("^", "_"):
            taken = len(re.match(r"[-+]?\d+|[-+]?.", other, re.DOTALL)[0])
        tokens[at] = ("", "", other[taken:])
        return other[:taken], at if other[taken:] else at + 1
    said, at = _item(tokens, at, depth + 1)
    return (said[1:-1] if said[:1] == "{" else said), at

"""What is wrong with rows, told in as many sentences as there are reasons, not rows."""

from collections.abc import Sequence

SHOWN = 10
"""Reasons that one message gives."""


def gathered(problems: Sequence[str], shown: int = SHOWN) -> list[str]:
    """One line a reason, with the first row that it is true of and how many more there are.

    Args:
        problems: ``PLACE: REASON`` each, as ``pairs.jsonl, line 3: the chosen response is empty``.
        shown: reasons that are given; of further ones a last line counts the rows.
    """
    of_reason: dict[str, list[str]] = {}
    for problem in problems:
        of_reason.setdefault(problem.partition(": ")[2] or problem, []).append(problem)
    told = list(of_reason.values())
    lines = [first + (f" (and {len(rest)} more)" if rest else "") for first, *rest in told[:shown]]
    if left := sum(map(len, told[shown:])):
        lines.append(f"... and {left} more")
    return lines


def below(problems: Sequence[str]) -> str:
    """These lines, each below what announces them."""
    return "".join(f"\n  {line}" for line in gathered(problems))

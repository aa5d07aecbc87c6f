"""How long texts may be, as options of a data module say it."""

from datamodules.checks import require_whole
from datamodules.text.encoding import Limits


def prompt_limits(max_length: int, max_prompt_length: int) -> Limits:
    """The limits that the options of that name say.

    Args:
        max_length: most tokens of prompt and response together: the response is cut on the right.
        max_prompt_length: most tokens of the prompt alone: it is cut on the left.

    Raises:
        ValueError: names the option that is out of its range.
    """
    require_whole("data", 2, max_length=max_length)
    require_whole("data", 1, max_prompt_length=max_prompt_length)
    try:
        return Limits(max_length, max_prompt_length)
    except ValueError as error:
        raise ValueError(f"data.{error}") from None

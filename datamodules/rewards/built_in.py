"""Rewards by name: ``reward=length``, ``reward=sentiment``, ``reward=function`` of one's own."""

from collections.abc import Sequence
from typing import Any

from datamodules.rewards.calling import Metadata
from datamodules.rewards.functions import RewardFunction
from datamodules.rewards.invoking import resolved


def length_reward(
    prompts: Sequence[str], responses: Sequence[str], metadata: Metadata = None
) -> list[float]:
    """Longer is better: a hundredth for each word, at most 1."""
    return [min(len(response.split()) / 100, 1.0) for response in responses]


def length(timeout_s: float | None = None) -> RewardFunction:
    """``reward=length``.

    Args:
        timeout_s: see ``RewardFunction``.
    """
    return RewardFunction(length_reward, timeout_s=timeout_s)


def sentiment(timeout_s: float | None = None) -> RewardFunction:
    """``reward=sentiment``: VADER's compound score of the response, -1 to 1.

    Args:
        timeout_s: see ``RewardFunction``.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def compound(prompts: Any, responses: Sequence[str], metadata: Metadata = None) -> list[float]:
        return [analyzer.polarity_scores(response)["compound"] for response in responses]

    return RewardFunction(compound, timeout_s=timeout_s, name="sentiment")


def function(
    path: str,
    *,
    run_in: str = "thread",
    concurrency: int | None = None,
    retries: int = 2,
    cache: str | None = None,
    timeout_s: float | None = None,
) -> RewardFunction:
    """``reward=function reward.path=my_pkg.my_module:my_fn``.

    Args:
        path: where the function stands: any that ``RewardFunction`` takes.
        run_in, concurrency, retries, cache, timeout_s: see ``RewardFunction``.

    Raises:
        ValueError: the path has no such form, or nothing callable stands there; or as of
            ``RewardFunction``.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"reward.path={path!r} must have the form my_pkg.my_module:my_fn")
    try:
        fn = resolved(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward.path={path!r} cannot be imported ({error}); the module must be importable from"
            " the folder that train.py is started in"
        ) from error
    if not callable(fn):
        raise ValueError(f"reward.path={path!r} is a {type(fn).__name__}, not a function")
    return RewardFunction(
        fn,
        timeout_s=timeout_s,
        name=path,
        run_in=run_in,
        concurrency=concurrency,
        retries=retries,
        cache=cache,
        path=path,
    )

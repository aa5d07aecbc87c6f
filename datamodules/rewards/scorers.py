"""Models that score texts, as rewards and comparisons. A text becomes token ids in one place
(``datamodules.text.encoding``), and ids become a score by the model's own method (``TextScorer``).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from datamodules.checks import require_whole
from datamodules.positions import positions_of
from datamodules.rewards.calling import Metadata
from datamodules.rewards.devices import follow, place
from datamodules.rewards.functions import RewardFunction
from datamodules.text.encoding import Limits, Window, encode_responses

BATCH = 16
"""Pairs, or texts, that a model looks at at once."""
UNLIMITED = 2**31
"""Tokens; some tokenizers say 10^30, which they do not accept themselves."""
Texts = Sequence[str]
Rows = Sequence[Sequence[int]]


class TextScorer(Protocol):
    """What gives texts a reward: ``RewardModel``, or a ``Classifier``."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model."""

    @property
    def limits(self) -> Limits:
        """How much of a text it was trained to see."""

    def predict_ids(self, ids: Rows, batch_size: int = BATCH) -> list[float]:
        """The reward of each tokenized text, whatever stands beside it in a batch."""


class PairScorer(TextScorer, Protocol):
    """What also compares two texts with both before its eyes: ``PairwiseRewardModel``."""

    def compare_ids(self, firsts: Rows, seconds: Rows, batch_size: int = BATCH) -> list[float]:
        """Log-odds that the first of each two tokenized texts is the better one."""


def reward_of(
    scorer: TextScorer,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    batch_size: int = BATCH,
    max_length: int | None = None,
    timeout_s: float | None = None,
    name: str | None = None,
) -> RewardFunction:
    """The rewards of a model.

    Args:
        tokenizer: default: the scorer's own.
        batch_size: texts that are scored at once.
        max_length: most tokens of prompt and response, in the place of the scorer's limit. The
            prompt's share of it stays the same, so that the response keeps its room.
        timeout_s, name: see ``RewardFunction``.

    Raises:
        ValueError: ``max_length`` holds no prompt and response.
    """
    require_whole("reward", 1, batch_size=batch_size)
    if max_length is not None:
        require_whole("reward", 2, max_length=max_length)
    tokenizer = tokenizer or scorer.tokenizer
    limits = scorer.limits if max_length is None else scorer.limits.scaled(max_length)

    def score(prompts: Texts, responses: Texts, metadata: Metadata = None) -> list[float]:
        follow(scorer)
        rows = encode_responses(tokenizer, prompts, responses, metadata, limits)
        return scorer.predict_ids(rows, batch_size)

    return RewardFunction(score, timeout_s=timeout_s, name=name or type(scorer).__name__)


def comparison_of(
    scorer: PairScorer, tokenizer: PreTrainedTokenizerBase | None = None
) -> Callable[[Texts, Texts, Texts, Metadata], list[float]]:
    """P(first is better) of each pair of responses, by ``scorer.compare_ids``."""
    tokenizer = tokenizer or scorer.tokenizer

    def compare(prompts: Texts, firsts: Texts, seconds: Texts, metadata: Metadata) -> list[float]:
        follow(scorer)
        sides = [
            encode_responses(tokenizer, prompts, side, metadata, scorer.limits)
            for side in (firsts, seconds)
        ]
        log_odds = torch.tensor(scorer.compare_ids(*sides, BATCH), dtype=torch.float64)
        return log_odds.sigmoid().tolist()

    return compare


class Classifier:
    """A sequence classifier of transformers, as a ``TextScorer``.

    Its one limit is what tokenizer and model have positions for. The response may take three
    quarters of that, and the prompt, cut on the left, what the response leaves.

    Args:
        model: one output is the reward itself; with several, ``label`` names the one whose
            log-probability is.
        tokenizer: of the model.
        max_length: a smaller limit.
        name: shown in errors.

    Raises:
        ValueError: the model is no classifier, or ``label`` does not fit its outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: int | None = None,
        max_length: int | None = None,
        name: str = "the model",
    ) -> None:
        if max_length is not None:
            require_whole("reward", 2, max_length=max_length)
        self.model, self.tokenizer, self.label = model, tokenizer, label
        config = getattr(model, "config", None)
        self.labels = getattr(config, "num_labels", 0)
        if not self.labels:
            raise ValueError(f"{name} has no outputs of a classifier: give a reward model")
        if self.labels > 1 and (label is None or not 0 <= label < self.labels):
            raise ValueError(
                f"{name} has {self.labels} outputs: set reward.label to the wanted one of"
                f" {config.id2label} (in Python: datamodules.rewards.model(path, label=...))"
            )
        if self.labels == 1 and label is not None:
            raise ValueError(f"reward.label={label}: {name} has one output; leave it at null")
        positions = positions_of(model).count or UNLIMITED
        longest = UNLIMITED if max_length is None else max_length
        self.limits = Window.of(min(longest, tokenizer.model_max_length, positions))

    def to(self, device: torch.device | str) -> "Classifier":
        """Move the model, as ``nn.Module.to`` does."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def predict_ids(self, ids: Rows, batch_size: int = BATCH) -> list[float]:
        """See ``TextScorer``."""
        model, rewards, training = self.model, [], self.model.training
        settings = model.config.get_text_config()
        padding, device = settings.pad_token_id, next(model.parameters()).device
        model.eval()
        try:
            for start in range(0, len(ids), batch_size):
                batch = ids[start : start + batch_size]
                settings.pad_token_id = unused(batch, padding)
                padded, mask = right_padded(batch, settings.pad_token_id)
                outputs = model(input_ids=padded.to(device), attention_mask=mask.to(device))
                logits = outputs.logits.float()
                one = logits[:, 0] if self.labels == 1 else logits.log_softmax(-1)[:, self.label]
                rewards += one.tolist()
        finally:
            settings.pad_token_id = padding
            model.train(training)
        return rewards


def unused(ids: Rows, padding: int | None) -> int:
    """``padding``, or else another id, which no text holds.

    Classifiers over decoders look for the last token that is not padding: were padding the end
    token, as many checkpoints have it, they would read the score one token early.
    """
    used = {token for row in ids for token in row}
    candidates = [] if padding is None else [padding]
    return next(i for i in (*candidates, *range(len(used) + 1)) if i not in used)


def right_padded(ids: Rows, padding: int) -> tuple[Tensor, Tensor]:
    """Padded ids and mask [B, T]."""
    padded = pad_sequence([torch.tensor(row) for row in ids], True, padding)
    lengths = torch.tensor([len(row) for row in ids])
    return padded, (torch.arange(padded.shape[1])[None, :] < lengths[:, None]).long()


def model(
    path: str,
    *,
    batch_size: int = BATCH,
    max_length: int | None = None,
    label: int | None = None,
    device: str | None = None,
    timeout_s: float | None = None,
) -> RewardFunction:
    """``reward=model reward.path=DIR``: a sequence-classification checkpoint.

    Args:
        path: folder or hub id.
        batch_size: texts that are scored at once.
        max_length, label: see ``Classifier``.
        device: default: that of the process, as the Trainer says; without one its GPU.
        timeout_s: see ``RewardFunction``.

    Raises:
        ValueError: there is no such checkpoint, or it is an adapter; see ``Classifier``.
    """
    if (Path(path) / "adapter_config.json").is_file():
        raise ValueError(
            f"reward.path={path!r} is an adapter: rlmodules.reward_models.serving.model, which"
            " reward=model calls, finds its base"
        )
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        classifier, loaded = AutoModelForSequenceClassification.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True
        )
        absent = {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}
        if absent:
            raise ValueError(f"it has no weights, or of other shapes, for {sorted(absent)}")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"reward.path={path!r} is no sequence-classification checkpoint: {error}"
        ) from error
    name = f"reward.path={path!r}"
    scorer = Classifier(classifier.eval(), tokenizer, label=label, max_length=max_length, name=name)
    return reward_of(
        place(scorer, device), batch_size=batch_size, timeout_s=timeout_s, name=f"model {path}"
    )

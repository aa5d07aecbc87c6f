"""A model that a policy learns from: frozen, of another size, of the same vocabulary."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from rlmodules.models.adapters import LoraConfig
from rlmodules.models.config import ModelConfig
from rlmodules.models.loading import load_model, load_tokenizer
from rlmodules.models.modes import disable_dropout
from rlmodules.models.scoring import PolicyModel
from rlmodules.models.vocabulary import match_tokenizer

NAMES = {
    "model.name": "algo.teacher_model_name_or_path",
    "model.revision": "algo.teacher_model_revision",
    "model.quantization": "algo.teacher_quantization",
}
"""Options of a model, as the teacher's are called."""


class Teacher(nn.Module):
    """Stands where a ``Reference`` does, and is as large as it likes; in no checkpoint.

    Args:
        model: a causal language model, which is frozen.
        tokenizer: of the policy.
        packs: whether rows are packed, if the model can.

    Raises:
        ValueError: the model does not know some of the tokens.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, packs: bool = True
    ) -> None:
        super().__init__()
        disable_dropout(model)
        match_tokenizer(model, tokenizer)
        self.model = PolicyModel(model.requires_grad_(False))
        if packs:
            self.model.enable_packing()

    @contextlib.contextmanager
    def of(self, policy: PolicyModel) -> Iterator[PolicyModel]:
        """The teacher, whoever learns from it."""
        yield self.model


def config_of_teacher(
    policy: ModelConfig, *, name: str | None, revision: str | None, quantization: str
) -> ModelConfig:
    """How the model ``name`` is loaded, to be read alone.

    Args:
        policy: how the policy is; type, attention and trust are the teacher's too.

    Raises:
        ValueError: no model is named, or it could not be held like that.
    """
    if name is None:
        raise ValueError(
            "algo.teacher_model_name_or_path=null: name the model to learn from, such as"
            " algo.teacher_model_name_or_path=outputs/DATE/TIME/model"
        )
    with naming_teacher(name):
        return replace(
            policy, name=name, revision=revision, quantization=quantization, lora=LoraConfig(),
            adapter="continue", gradient_checkpointing=False, activation_offload=False,
        )  # fmt: skip


def load_teacher(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The model of ``config_of_teacher``.

    Args:
        tokenizer: of the policy.

    Raises:
        ValueError: nothing loadable is there, or its tokenizer has other tokens.
    """
    with naming_teacher(config.name):
        require_same_vocabulary(load_tokenizer(config), tokenizer)
        return load_model(config, trained=False)


@contextlib.contextmanager
def naming_teacher(name: str) -> Iterator[None]:
    """Have what goes wrong with the model ``name`` name the teacher's options."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        for option, teachers in NAMES.items():
            said = said.replace(option, teachers)
        start = f"algo.teacher_model_name_or_path={name!r}: "
        raise ValueError(start + said.removeprefix(start)) from error


def require_same_vocabulary(
    teachers: PreTrainedTokenizerBase, policys: PreTrainedTokenizerBase
) -> None:
    """
    Raises:
        ValueError: a token has another id, or none, on the other side.
    """
    theirs, ours = teachers.get_vocab(), policys.get_vocab()
    token = _first_apart(ours, theirs) or _first_apart(theirs, ours)
    if token is not None:
        raise ValueError(
            f"the teacher's tokenizer is not the policy's: {token!r} is"
            f" {theirs.get(token, 'no token')} there and {ours.get(token, 'no token')} here, so"
            " that their distributions are over other words. Take a teacher and a policy of one"
            " family"
        )


def _first_apart(some: Mapping[str, int], others: Mapping[str, int]) -> str | None:
    return next((token for token, i in some.items() if others.get(token) != i), None)

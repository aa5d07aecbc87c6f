"""What a causal language model says of tokens: log-probabilities, entropies, values, next tokens.

One module holds the language model and its heads. All that algorithms, samplers and clients compute
with it is a method here, and they call no inner part: a sharded model is whole only inside a
forward method of its root.

Shapes: B sequences, T_i tokens of one, N positions altogether, H hidden size, V vocabulary; R rows
that are being sampled.
"""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from datamodules.experience import TokenBatch
from datamodules.positions import Positions, positions_of
from rlmodules.functional.divergences import Predictions, divergence
from rlmodules.functional.logprobs import Projection, token_logprobs
from rlmodules.models.compiling import compile_layers, eagerly
from rlmodules.models.copies import Product
from rlmodules.models.heads import (
    ValueHead,
    backbone,
    hidden_states,
    logit_shape,
    projection,
    unwrapped,
)
from rlmodules.models.layout import Layout, flat_hidden, lay_out, pad
from rlmodules.models.lean import keep_less
from rlmodules.models.packing import packing_pays, try_packing
from rlmodules.models.quirks import even_out, require_gradients, require_kept
from rlmodules.models.vocabulary import check_ids, vocabulary_size

CACHES = ("past_key_values", "cache_params", "state")
"""What architectures call what they remember, as an argument and in their output."""


@dataclass(frozen=True)
class TokenScores:
    """What a model says of the tokens of a ``TokenBatch``."""

    logprobs: Tensor
    """[N], of each token given those before it, in nats; float32, differentiable."""
    entropy: Tensor | None
    """[N], of the distribution that it was predicted by; None unless asked for."""
    values: Tensor | None
    """[N], the critic's, before each token; None unless asked for."""
    is_top: Tensor
    """[N], whether no token was likelier."""
    logits: list[Tensor] | None
    """[T_i, V] of each sequence on the CPU, at t what follows token t; None unless asked for."""


class PolicyModel(nn.Module):
    """A causal language model, adapters included, as policies are computed with.

    Args:
        base_model: of transformers, or a PEFT model around one.

    Attributes:
        can_pack: whether the model was found to take packed rows.
        compiled: whether the decoder layers are.
        value_head: the critic; None where there is none.
        product: what multiplies states with the vocabulary where they are sampled from.

    Raises:
        ValueError: it is no causal language model, or treats its logits in a way not known here.
    """

    def __init__(self, base_model: Any) -> None:
        super().__init__()
        even_out(base_model)
        self._logit_shape = logit_shape(base_model)
        require_kept(unwrapped(base_model))
        require_gradients(backbone(base_model))
        self.base_model = base_model
        self.value_head: ValueHead | None = None
        self.can_pack = self.compiled = False
        self.product: Product = nn.functional.linear

    @classmethod
    def of(cls, model: nn.Module) -> "PolicyModel":
        """``model`` itself if it is one, else around it."""
        return model if isinstance(model, PolicyModel) else PolicyModel(model)

    def train(self, mode: bool = True) -> "PolicyModel":
        """Training is what evaluation is: ratios and references need the same numbers from both.

        Dropout is not all that a model does in training alone: some routers draw their experts.
        What remains is the mode of the parts that compute their activations again.
        """
        super().train(mode)
        for part in self.base_model.modules():
            part.training = mode and getattr(part, "gradient_checkpointing", False)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.base_model.parameters()).device

    @property
    def num_logits(self) -> int:
        """How many ids are predicted."""
        return len(self.vocabulary_weight)

    @property
    def vocabulary_weight(self) -> Tensor:
        """[V, H], of the vocabulary projection."""
        return self._projection.weight

    @cached_property
    def positions(self) -> Positions:
        """How many tokens a text may have."""
        return positions_of(self.base_model)

    def enable_packing(self) -> None:
        """Pack rows from now on, where it pays and if the model computes packed rows rightly (else
        a warning)."""
        self.can_pack = try_packing(self._body)

    @property
    def packs(self) -> bool:
        """Whether rows are packed now: what neighbours begin with alike is computed once."""
        return self.can_pack and packing_pays(self._body)

    def compile_layers(self) -> None:
        """Have the decoder layers compiled when they first train or score; sampling stays eager.

        Raises:
            ValueError: the architecture does not say which its layers are.
        """
        compile_layers(self._body)
        self.compiled = True

    def keep_less(self) -> None:
        """Have the layers keep less for the backward pass, which a compiler sees to by itself."""
        keep_less(self._body)

    def score(
        self,
        tokens: TokenBatch,
        *,
        temperature: float = 1.0,
        with_entropy: bool = False,
        entropy_grad: bool = True,
        with_values: bool = False,
        with_logits: bool = False,
    ) -> TokenScores:
        """Score the tokens of ``softmax(logits / temperature)``; one forward pass.

        Only hidden states that predict such a token reach the vocabulary, and where rows are packed
        equal predictions (of the same token after the same text) are made once. What follows a
        sequence's last token of interest is not computed.

        Args:
            entropy_grad: whether the entropy is to be differentiable.
        """
        layout, before = self._lay_out(tokens, whole=with_logits)
        states = flat_hidden(self._body, layout)
        at, targets, which = before, tokens.actions.to(self.device), slice(None)
        if self.packs:
            pairs = torch.stack([before, targets])
            (at, targets), which = torch.unique(pairs, dim=1, return_inverse=True)
        found = token_logprobs(
            states[at],
            self._projection,
            targets,
            temperature=temperature,
            with_entropy=with_entropy,
            entropy_grad=entropy_grad,
        )
        return TokenScores(
            logprobs=found.logprobs[which],
            entropy=None if found.entropy is None else found.entropy[which],
            is_top=found.is_top[which],
            values=self._critic(states[before]) if with_values else None,
            logits=self._logits(states, layout) if with_logits else None,
        )

    def predictions(self, tokens: TokenBatch) -> Predictions:
        """What predicts the tokens, in their order, without gradients; for ``divergence``."""
        with torch.no_grad():
            states, projection = self._predictions(tokens), self._projection
        if isinstance(self, FSDPModule):  # its weights are let go of when this returns
            projection = projection.copied()
        return Predictions(states, projection)

    def divergence(
        self, tokens: TokenBatch, teacher: Predictions, *, beta: float, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Divergence [N] from ``teacher`` before each of the tokens, and entropy [N] there, in
        nats; see ``functional.divergences``."""
        policy = Predictions(self._predictions(tokens), self._projection)
        return divergence(policy, teacher, beta=beta, temperature=temperature)

    def values(self, tokens: TokenBatch) -> Tensor:
        """[N], the critic's values; gradients reach its head alone, the policy stays as it is."""
        with torch.no_grad():
            hidden = self._predictions(tokens)
        return self._critic(hidden)

    @property
    def _critic(self) -> ValueHead:
        assert self.value_head is not None, "this policy has no critic"
        return self.value_head

    def next_logits(
        self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Logits [R, V] of what follows ``ids`` [R, T] after all that ``cache`` holds, which grows.

        Args:
            attention_mask: [R, all columns], 0 at padding; None where there is none.
            positions: [R, T], of the ids in their texts.
            cache: what this gave before; None where nothing was read before.
        """
        states, cache = self.next_states(ids, attention_mask, positions, cache)
        return self._projection.logits(states), cache

    def next_states(
        self, ids: Tensor, attention_mask: Tensor | None, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Hidden states [R, H] that predict the next token, as for ``next_logits``."""
        inputs = {"position_ids": positions} if "position_ids" in self._takes else {}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        name = next((name for name in CACHES if name in self._takes), CACHES[0])
        with eagerly() if self.compiled else nullcontext():  # a cache grows: no shape comes twice
            output = self._body(input_ids=ids, use_cache=True, **inputs, **{name: cache})
        # A slice of a 3-D tensor would take the slow batched matrix product.
        return output.last_hidden_state[:, -1].contiguous(), output[name]

    def last_logits(self, texts: Sequence[Tensor]) -> Tensor:
        """Logits [R, V] of what follows each text [T_i], all of which is read, without a cache."""
        return self._projection.logits(self.last_states(texts))

    def last_states(self, texts: Sequence[Tensor]) -> Tensor:
        """Hidden states [R, H] that predict the next token, as for ``last_logits``."""
        layout = pad([texts]).to(self.device)
        last = torch.stack([index[-1] for index in layout.index])
        return flat_hidden(self._body, layout)[last]

    # ------------------------------------------------------------------ inside

    @property
    def _body(self) -> nn.Module:
        return backbone(self.base_model)

    @property
    def _projection(self) -> Projection:
        return replace(projection(self.base_model, self._logit_shape), product=self.product)

    @cached_property
    def _takes(self) -> frozenset[str]:
        return frozenset(inspect.signature(self._body.forward).parameters)

    def _predictions(self, tokens: TokenBatch) -> Tensor:
        """[N, H], the hidden states that predict the tokens."""
        layout, before = self._lay_out(tokens, whole=False)
        return flat_hidden(self._body, layout)[before]

    def _lay_out(self, tokens: TokenBatch, *, whole: bool) -> tuple[Layout, Tensor]:
        """The sequences as the body takes them, and where each token's hidden state comes out."""
        check_ids(tokens.sequences, vocabulary_size(self.base_model))
        layout, before = lay_out(tokens, packed=self.packs, whole=whole)
        self.positions.require(layout.sequences)
        return layout.to(self.device), before.to(self.device)

    @torch.no_grad()
    def _logits(self, states: Tensor, layout: Layout) -> list[Tensor]:
        return [self._projection.logits(states[at]).cpu() for at in layout.index]


class PPOModel(PolicyModel):
    """Any causal language model, LoRA adapters included, with a ``ValueHead`` on its backbone."""

    value_head: ValueHead

    def __init__(self, base_model: Any) -> None:
        super().__init__(base_model)
        self.value_head = ValueHead(self._projection.weight.shape[1])  # configs name another

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] and values [B, T]. Training never calls this: it needs neither whole."""
        hidden = self.hidden_states(input_ids, attention_mask)
        return self._projection.logits(hidden), self.value_head(hidden)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Last hidden states [B, T, H]. Right-padded causal batches need no ``attention_mask``."""
        return hidden_states(self.base_model, input_ids, attention_mask)

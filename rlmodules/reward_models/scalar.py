"""Reward models: a score for a text, learned from preferences (Bradley and Terry 1952; Stiennon et
al. 2020, arXiv:2009.01325).

``RewardModel`` is any transformer, decoder or encoder, with a linear head on one pooled hidden
state a text. ``PairwiseRewardModel`` adds a head that looks at both texts, and
``MultiObjectiveRewardModel`` scores several objectives at once. Each trains by itself under a
``Trainer`` and works as an ordinary module: ``model(input_ids, attention_mask)``.

Shapes: B texts (2B for B pairs), T tokens, H hidden size, L labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedTokenizerBase

from datamodules.positions import Positions, positions_of
from datamodules.preferences.dataset import Preference, PreferenceBatch, response_lengths
from datamodules.preferences.rows import Content
from datamodules.text.encoding import Limits, encode_texts
from rlmodules.algorithms.offline import OfflineModule, require_room
from rlmodules.functional import bradley_terry_loss
from rlmodules.models import ModelConfig, load_backbone, load_tokenizer, prepare_given
from rlmodules.models.adapters import has_adapters
from rlmodules.models.compiling import compile_layers
from rlmodules.models.layout import Layout, flat_hidden, look_at, pack, pad, unpad
from rlmodules.models.lean import keep_less
from rlmodules.models.media import language_model
from rlmodules.models.modes import evaluating
from rlmodules.models.packing import packing_pays, try_packing
from rlmodules.models.quantized import held_as
from rlmodules.models.quirks import even_out, require_gradients
from rlmodules.models.saved_adapters import saved_adapter
from rlmodules.models.sharding import shard_body, shard_head
from rlmodules.models.vocabulary import check_ids, match_tokenizer, vocabulary_size
from rlmodules.reward_models import files
from rlmodules.reward_models.adapted import adopt_head
from rlmodules.reward_models.config import RewardModelConfig, with_lora
from rlmodules.reward_models.heads import RewardHead


class RewardModel(OfflineModule):
    """A transformer with a scalar (or ``num_labels``) head.

    Args:
        config: settings, or a dict of them (as a checkpoint holds).
        model_config: how to load the backbone; default: ``config.model_name``.
        base_model: a backbone (``AutoModel``) to use instead of loading one.
        tokenizer: default: the one beside the model.

    Raises:
        ValueError: ``use_lora`` and ``model.lora.r`` are both set, the model has two names, or the
            tokenizer tokens that it does not know.
    """

    closes_texts = False  # texts are what any user's tokenizer makes of them
    config_class = RewardModelConfig

    def __init__(
        self,
        config: RewardModelConfig | dict[str, Any],
        model_config: ModelConfig | dict[str, Any] | None = None,
        *,
        base_model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        c = self.config_class(**config) if isinstance(config, dict) else config
        model_config = ModelConfig.of(model_config, c.model_name, given=base_model is not None)
        if tokenizer is None and base_model is None:
            tokenizer = load_tokenizer(model_config)
        super().__init__(tokenizer)
        with torch.random.fork_rng():  # new adapters and heads are a function of the seed
            torch.manual_seed(c.seed)
            wanted = with_lora(model_config, c)
            if base_model is None:
                self.base_model: Any = load_backbone(wanted)
            else:
                base_model = language_model(base_model)
                self.base_model = prepare_given(base_model, wanted, "FEATURE_EXTRACTION")
            even_out(self.body)
            self.hidden_size, self.is_causal = look_at(self.body)
            require_gradients(self.body)
            self.head = RewardHead(self.hidden_size, c.num_labels, c.dropout_prob)
        self.config = c
        saved = saved_adapter(wanted.name, wanted.revision) if base_model is None else None
        if saved is not None:
            adopt_head(self, saved)
        require_room(self.positions, c.max_length)
        if tokenizer is not None:
            match_tokenizer(self.base_model, tokenizer)
        may_pack = self.is_causal and model_config.attn_implementation == "auto"
        self.can_pack = may_pack and try_packing(self.body)
        if model_config.compile:
            compile_layers(self.body)
        else:
            keep_less(self.body)
        self.keep_settings(replace(model_config, quantization=held_as(self.base_model)))
        self.train()  # Lightning leaves the mode as it finds it

    @property
    def packs(self) -> bool:
        """Whether rows are packed now."""
        return self.can_pack and packing_pays(self.body)

    @property
    def body(self) -> nn.Module:
        """The transformer, with any adapters inside it."""
        model = self.base_model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def shard(self, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
        shard_body(self.body, mesh, dtype)
        for name in files.HEADS:
            if (head := getattr(self, name.removesuffix("."), None)) is not None:
                shard_head(head, mesh)

    def on_fit_start(self) -> None:
        if self.tokenizer is not None:  # perhaps another by now
            match_tokenizer(self.base_model, self.tokenizer)

    # ------------------------------------------------------------- the module

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Scores of padded texts; neither side nor amount of padding matters.

        Args:
            input_ids, attention_mask: [B, T].

        Returns:
            ``rewards`` [B, L] and ``pooled_output`` [B, H].
        """
        pooled = self.pooled(self.lay_out_texts(unpad(input_ids, attention_mask)))
        return {"rewards": self.scores(pooled), "pooled_output": pooled}

    def pooled(self, layout: Layout) -> Tensor:
        """[B, H], one hidden state a text."""
        hidden = flat_hidden(self.body, layout)
        if self.config.pooling_strategy == "mean":
            return torch.stack([hidden[index].float().mean(0) for index in layout.index])
        end = 0 if self.config.pooling_strategy == "cls" else -1
        return hidden[torch.stack([index[end] for index in layout.index])]

    def scores(self, pooled: Tensor) -> Tensor:
        """[B, H] -> [B, L]"""
        return self.head(pooled) / self.config.temperature

    def lay_out_texts(self, groups: Sequence[Sequence[Tensor]]) -> Layout:
        """Groups of texts as the model takes them.

        Raises:
            ValueError: a text holds a token that the model does not know, or is too long for it.
        """
        texts = [text for group in groups for text in group]
        check_ids(texts, vocabulary_size(self.base_model))
        self.positions.require(texts)
        layout = pack(groups) if self.packs else pad(groups, with_mask=not self.is_causal)
        return layout.to(self.device)

    def lay_out(self, batch: PreferenceBatch) -> Layout:
        return self.lay_out_texts(batch.sequences)

    @cached_property
    def positions(self) -> Positions:
        """How many tokens a text may have."""
        return positions_of(self.base_model)

    @property
    def limits(self) -> Limits:
        """How much of a text it is trained to see."""
        return Limits(self.config.max_length, self.config.max_prompt_length)

    def predict_rewards(
        self,
        texts: Sequence[Content],
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int = 512,
        batch_size: int = 8,
    ) -> list[float]:
        """The reward of each text, of which nothing says where the prompt ends.

        A text of the lengths that the model is trained on gets the reward that it has in training
        and everywhere else; of a longer one the end is kept, where training cuts the response.

        Args:
            texts: whole texts (or conversations, which go through the chat template).
            tokenizer: default: the model's own.
            max_length: most tokens of each text, and no more than ``config.max_length``.
        """
        longest = min(max_length, self.config.max_length)
        return self.predict_ids(
            encode_texts(tokenizer or self.tokenizer, texts, longest), batch_size
        )

    def predict_ids(self, ids: Sequence[Sequence[int]], batch_size: int = 8) -> list[float]:
        """The reward of each tokenized text."""
        return self.in_batches(self.reward, ids, batch_size).tolist()

    def in_batches(
        self, read: Callable[[Tensor], Tensor], ids: Sequence[Sequence[int]], batch_size: int
    ) -> Tensor:
        """What ``read`` makes of the pooled hidden states of tokenized texts, on the CPU."""
        found = []
        with evaluating(self):
            for start in range(0, len(ids), batch_size):
                groups = [[torch.tensor(row)] for row in ids[start : start + batch_size]]
                found.append(read(self.pooled(self.lay_out_texts(groups))).float().cpu())
        return torch.cat(found) if found else torch.zeros(0)

    def reward(self, pooled: Tensor) -> Tensor:
        """[B, H] -> [B], the one number that a policy is rewarded with."""
        scores = self.scores(pooled)
        if scores.shape[1] != 1:
            raise ValueError(f"num_labels={scores.shape[1]}: there is no single reward")
        return scores[:, 0]

    # -------------------------------------------------------------- training

    def pair_scores(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """[2B, H] of chosen and rejected in turn -> scores [B] whose difference is the log-odds."""
        return self.reward(pooled).view(-1, 2).unbind(1)

    def losses(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = self.pair_scores(self.pooled(self.lay_out(batch)))
        return bradley_terry_loss(
            chosen_B=chosen,
            rejected_B=rejected,
            margin_B=batch.margins.to(chosen.device),
            label_smoothing=self.config.label_smoothing,
            center_rewards_coefficient=self.config.center_rewards_coefficient,
            num_pairs=batch.totals["num_examples"],
        )

    def judge(self, examples: Sequence[Preference]) -> dict[str, Tensor]:
        """What the model says of held-out ``examples``, on the CPU.

        Returns:
            ``lengths``, response tokens [N, K]; ``scores``: of pairs [N, 2], whose difference is
            the log-odds of the first, and ``swapped`` [N], those log-odds with the sides swapped.
        """
        found: dict[str, list[Tensor]] = {"scores": [], "swapped": []}
        with evaluating(self), self.inference():
            for start in range(0, len(examples), self.config.batch_size):
                groups = [e.sequences for e in examples[start : start + self.config.batch_size]]
                for name, order in (("scores", 1), ("swapped", -1)):
                    layout = self.lay_out_texts([group[::order] for group in groups])
                    found[name].append(torch.stack(self.pair_scores(self.pooled(layout)), dim=1))
        scores, swapped = (torch.cat(found[name]).float().cpu() for name in ("scores", "swapped"))
        return {
            "scores": scores,
            "swapped": swapped[:, 0] - swapped[:, 1],
            "lengths": response_lengths(examples),
        }

    def warmup_steps(self, total: int) -> int:
        return min(self.config.warmup_steps, max(total // 10, 1))

    # ----------------------------------------------------------------- files

    def save_model(self, path: str | Path) -> None:
        """All that was trained, and the settings, in one safetensors file (whatever its name)."""
        files.save(self, Path(path))

    def load_model(self, path: str | Path) -> None:
        """Take the weights of a file that ``save_model`` wrote.

        Raises:
            ValueError: another model's file, or no safetensors file: a pickle is never opened.
        """
        files.load(self, Path(path))

    def export(self, dirpath: Path, *, merge: bool | None = None, dtype: str | None = None) -> None:
        """A folder that ``reward=model``, ``RewardModel.from_pretrained`` and, where it has such a
        head, ``AutoModelForSequenceClassification`` load."""
        self.require_export(merge=merge, dtype=dtype)
        files.export(self, dirpath, dtype)

    def require_export(self, *, merge: bool | None, dtype: str | None = None) -> None:
        super().require_export(merge=merge or None, dtype=dtype)
        if merge is False and has_adapters(self.base_model):
            raise ValueError(
                "export.merge=false: a reward model is exported with its adapters merged, so that"
                " any library loads it; for the adapters alone, use save_model"
            )

    def from_export(self, dirpath: Path) -> "RewardModel":
        return self.from_pretrained(dirpath)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "RewardModel":
        """The model in a folder that ``export`` wrote."""
        return files.from_pretrained(cls, Path(path))

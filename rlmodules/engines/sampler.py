"""A ``Sampler`` whose responses vLLM writes, with the weights that the policy has now.

After each hand-over a few tokens that vLLM draws are scored by the trainer: where the two disagree,
the run stops, for nothing else would show it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from datamodules.types import Response, SamplingParams
from rlmodules.engines.client import Asked, Client
from rlmodules.engines.engine import Engine
from rlmodules.engines.errors import SamplerError
from rlmodules.engines.handover import trainer_logprobs, version_of
from rlmodules.models.vocabulary import absent_ids, match_ends

PROBES, PROBED_TOKENS = 4, 8
"""Responses, and tokens of each, that are compared after each hand-over."""
SURE = 1e-3
"""Nats by which what is the only choice may be less than certain."""


class VLLMSampler:
    """Writes responses for one module.

    Args:
        engine: of the run.
        module: an ``OnlineModule``, whose policy is sampled from.
    """

    def __init__(self, engine: Engine, module: Any) -> None:
        self.engine, self.module = engine, module
        self._checked = False

    def __call__(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Response]:
        """One response to each prompt.

        Raises:
            SamplerError: the server is gone, hangs, or has other weights than the trainer.
            ValueError: a prompt is too long for it.
        """
        client = self.engine.client(self.module)
        longest = self.engine.longest
        for prompt in prompts:
            if len(prompt) + params.max_new_tokens > longest:
                raise ValueError(
                    f"a prompt of {len(prompt)} tokens and algo.max_new_tokens="
                    f"{params.max_new_tokens} exceed the {longest} tokens of vLLM: shorten one of"
                    " them, or set --max-model-len in sampler.arguments"
                )
        self._keep_up(client, prompts)
        return client.complete(self._asked(prompts, params, seeds))

    def _keep_up(self, client: Client, prompts: Sequence[Tensor]) -> None:
        """Give vLLM the weights of now, if it has others.

        Raises:
            SamplerError: it cannot take them, or computes something else with them.
        """
        policy = self.module.policy
        # A step that changes next to nothing may leave the version as it was: it counts by itself.
        now = (id(self.module), self.module.global_step, version_of(policy.base_model))
        if now == self.engine.holds:
            return
        self.engine.hand_over(client, policy.base_model)
        self._compare(client, sorted(prompts, key=len)[:PROBES])
        self.engine.holds = now

    def _compare(self, client: Client, prompts: Sequence[Tensor]) -> None:
        """
        Raises:
            SamplerError: vLLM's log-probabilities of a few tokens are not the trainer's.
        """
        temperature, most = self.module.sampling.temperature, self.engine.options.max_mismatch
        probe = SamplingParams(max_new_tokens=PROBED_TOKENS, temperature=temperature)
        if not self._checked:
            self._require_processed(client, prompts, replace(probe, top_k=1))
            self._checked = True
        responses = client.complete(self._asked(prompts, probe, range(len(prompts))))
        said = torch.tensor([x for response in responses for x in response.logprobs])
        known = trainer_logprobs(self.module.policy, prompts, responses, temperature)
        apart = (said - known).abs().mean().item()
        if not apart <= most:
            raise SamplerError(
                f"vLLM samples from other weights than the trainer's: of the {len(said)} tokens"
                f" that it drew after the hand-over, it says {said.mean():.3f} nats a token and the"
                f" trainer {known.mean():.3f}, {apart:.3f} apart on average, more than"
                f" sampler.max_mismatch={most:g}"
            )

    def _require_processed(
        self, client: Client, prompts: Sequence[Tensor], only_one: SamplingParams
    ) -> None:
        """
        Raises:
            SamplerError: the server tells probabilities of another distribution than it draws from.
        """
        responses = client.complete(self._asked(prompts, only_one, range(len(prompts))))
        # Not the mean: in bfloat16 one token in ten has an equal, and top_k=1 leaves both.
        said = torch.tensor([x for response in responses for x in response.logprobs]).median()
        if not said.abs() <= SURE:
            raise SamplerError(
                f"the sampler's server at {client.url} says {said:.3f} nats (the median) of tokens"
                " that top_k=1 leaves alone, which are certain: start it with"
                " --logprobs-mode=processed_logprobs"
            )

    def _asked(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Asked]:
        """One request a prompt: several prompts in one would share a seed."""
        model, tokenizer = self.module.policy, self.module.tokenizer
        ends = match_ends(model.base_model, tokenizer) | set(params.stop_token_ids)
        absent = absent_ids(model.base_model, tokenizer, model.num_logits)
        asked = {
            "model": self.engine.model,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            # What is not named takes values of vLLM's or of the model's own.
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop": list(params.stop_strings),
            "stop_token_ids": sorted(ends),
            "ignore_eos": True,  # all end tokens are named
            "skip_special_tokens": False,  # a stop string may hold one
            "logprobs": 0,  # of the sampled token
            "return_token_ids": True,
        }
        if absent is not None:
            asked["logit_bias"] = {str(i): -100.0 for i in absent.tolist()}
        each = zip(prompts, seeds, strict=True)
        return [asked | {"prompt": p.tolist(), "seed": seed % 2**63} for p, seed in each]

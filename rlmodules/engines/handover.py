"""The policy's weights in a folder, as an engine on the same machine reads them.

Adapters are merged: what is handed over is always a plain model.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from datamodules.experience import TokenBatch
from datamodules.types import Response
from rlmodules.models import PolicyModel
from rlmodules.models.saving import save_plain, twin_of

Version = tuple[float, ...]
"""Which numbers are in a model's parameters."""


@torch.no_grad()
def version_of(model: nn.Module) -> Version:
    """What differs as soon as parameters do.

    Of those that are trained sums and norms, for torch's own counter of changes in place does not
    see a fused optimizer's steps; of those that are frozen that counter.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    known = [float(number) for p in frozen for number in (p.data_ptr(), p._version)]
    if not trained:
        return tuple(known)
    numbers = [*torch._foreach_norm(trained), *(p.float().sum() for p in trained)]
    return (*known, *torch.stack([x.float() for x in numbers]).tolist())


def write_weights(model: Any, folder: Path, dtype: torch.dtype) -> int:
    """Write the policy as a plain model; how many tensors its files hold."""
    shutil.rmtree(folder, ignore_errors=True)
    twin = twin_of(model)
    if twin.can_generate():
        twin.generation_config = GenerationConfig()  # every request says how to sample
    save_plain(model, folder, dtype=dtype, twin=twin)
    return count_tensors(folder)


def count_tensors(folder: Path) -> int:
    """How many tensors the safetensors in a folder hold."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), "pt") as file:
            count += len(file.keys())
    return count


def remove_weights(folder: Path) -> None:
    """Free what the weights in a folder take; a server reads them once."""
    for path in folder.glob("*.safetensors"):
        path.unlink()


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Beside the weights: a server looks for stop strings in text."""
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def trainer_logprobs(
    policy: PolicyModel,
    prompts: Sequence[torch.Tensor],
    responses: Sequence[Response],
    temperature: float,
) -> torch.Tensor:
    """[N], log-probabilities of all the responses' tokens, as training scores them."""
    sequences = [
        torch.cat([prompt, torch.tensor(response.tokens)])
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    positions = [
        torch.arange(len(prompt), len(sequence))
        for prompt, sequence in zip(prompts, sequences, strict=True)
    ]
    tokens = TokenBatch.collate(sequences, positions).to(policy.device)
    return policy.score(tokens, temperature=temperature).logprobs.cpu()

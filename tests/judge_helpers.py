"""Reward models that prefer something, for the tests: new ones score every text alike."""

import torch

from rlmodules import RewardModelConfig


def opinionated(cls, **changes):
    """A tiny reward model of class ``cls`` whose heads are random."""
    model = cls(RewardModelConfig(model_name="random:tiny", **changes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("head.", "comparison.")):
                weight.normal_(generator=generator)
    return model


def rewards(model, prompts, responses):
    return model.predict_rewards([p + r for p, r in zip(prompts, responses, strict=True)])

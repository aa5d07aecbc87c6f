"""Trained LoRA adapters of the tiny model, for the tests."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rlmodules.models import TINY
from rlmodules.models.embedded import tiny_model

IDS = torch.tensor([[3, 50, 7, 110, 9]])


def stir(model, scale=0.2):
    """Move what is trained of ``model``, so that its adapters say something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    return model


def trained(model=None, task="CAUSAL_LM", **settings) -> nn.Module:
    """A PeftModel whose adapters are trained."""
    torch.manual_seed(2)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    return stir(get_peft_model(model or tiny_model()[0], LoraConfig(task_type=task, **settings)))


def adapter_folder(path, model=None, base=TINY, **settings) -> str:
    """Such a model's adapter on disk, as PEFT writes it."""
    adapted = trained(model, **settings)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(path)
    return str(path)


@torch.no_grad()
def says(model):
    return model.eval()(input_ids=IDS)[0]

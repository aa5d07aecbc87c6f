"""Weights in 4 and 8 bits on paper: their bytes, and a product that keeps none of what it makes."""

import pytest
import torch
from adapter_helpers import adapter_folder
from pair_helpers import dataset
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import GPT2Config, GPT2LMHeadModel

from rlmodules import DPO, DPOConfig
from rlmodules.memory.live import LiveBytes
from rlmodules.memory.longest import groups_of
from rlmodules.memory.parts import WEIGHTS, held, size_of
from rlmodules.memory.passes import update
from rlmodules.memory.quantized import HeldLinear, hold_quantized
from rlmodules.memory.run import Run
from rlmodules.models import TINY, LoraConfig, ModelConfig
from rlmodules.models.quantized import quantized_layers


def test_a_product_makes_its_weight_and_lets_go_of_it():
    with FakeTensorMode():
        layer = HeldLinear(64, 128, False, "4bit", torch.float32)
        assert layer.weight.numel() == 64 * 128 // 2 + 128 + 4 + 4 * (16 + 256 + 1)
        x = torch.empty(5, 64, requires_grad=True)
        with LiveBytes() as live:
            live.begin("forward")
            y = layer(x)
            assert sum(live.peaks["forward"].values()) == 4 * (64 * 128 + 5 * 128)
            assert sum(live.live.values()) == 4 * 5 * 128
            y.sum().backward()
        assert x.grad.shape == x.shape


def test_the_head_stays_wide_and_transposed_layers_are_held():
    settings = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(**settings))
        hold_quantized(model, "8bit", torch.bfloat16)
    sizes = {name: p.weight.numel() for name, p in model.named_modules()
             if isinstance(p, HeldLinear)}  # fmt: skip
    assert sizes == {"transformer.h.0.attn.c_attn": 32 * 96 + 4 * 96,
                     "transformer.h.0.attn.c_proj": 32 * 32 + 4 * 32,
                     "transformer.h.0.mlp.c_fc": 32 * 128 + 4 * 128,
                     "transformer.h.0.mlp.c_proj": 128 * 32 + 4 * 32}  # fmt: skip
    assert model.lm_head.weight.shape == (50, 32)
    assert model(torch.zeros(1, 3, dtype=torch.long, device="meta")).logits.shape == (1, 3, 50)


def test_a_model_without_linear_layers_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match=r"quantization=4bit.*leave it out"):
        hold_quantized(GPT2LMHeadModel(GPT2Config(n_layer=0)), "4bit", torch.float32)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize(
    ("precision", "dtype", "checkpointing"),
    [("32-true", "float32", False), ("bf16-mixed", "float32", True),
     ("bf16-mixed", "bfloat16", False), ("32-true", "bfloat16", True)],
)  # fmt: skip
def test_a_step_of_qlora_takes_what_is_counted_on_paper(bits, precision, dtype, checkpointing):
    settings = {"quantization": bits, "lora": LoraConfig(r=4), "dtype": dtype}
    model = ModelConfig(name=TINY, gradient_checkpointing=checkpointing, **settings)
    config = DPOConfig(model_name=TINY, gradient_accumulation_steps=1)
    module, rows = DPO(config, model), dataset()
    batch = rows.batch(range(8), rows.totals(range(8)), "train")
    beside = size_of(_scales(module))
    live = LiveBytes()
    with live:
        live.add_weights(held(module), WEIGHTS)
        live.begin("all")
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = module.losses(batch)[0]
        loss.backward()
    real = sum(live.peaks["all"].values()) + beside
    parts = Run(DPO, config, model, precision, "cpu", 1).parts()
    assert parts.weight_bytes == size_of(held(module)) + beside and not parts.reference_bytes
    groups = groups_of(rows, reads_prompts=False)
    found = update(parts, groups, compared=groups)
    before = parts.optimizer_bytes + size_of(parts.trained)  # of the step before
    forward = max(sum(v.values()) for k, v in found.items() if "backward" not in k) - before
    backward = max(sum(v.values()) for k, v in found.items() if "backward" in k)
    assert max(forward, backward - parts.optimizer_bytes) == pytest.approx(real, rel=0.03)


def _scales(module):
    """What goes with weights in 4 bits, which no parameter or buffer is."""
    states = [
        getattr(part.weight, "quant_state", None) for part in quantized_layers(module).values()
    ]
    return [
        tensor
        for state in states
        if state is not None
        for tensor in (
            state.absmax,
            state.code,
            state.offset,
            state.state2.absmax,
            state.state2.code,
        )
    ]


def test_what_would_have_to_be_trained_cannot_be_held():
    model = ModelConfig(name=TINY, quantization="4bit")
    run = Run(DPO, DPOConfig(model_name=TINY), model, "32-true", "cpu", 1)
    with pytest.raises(ValueError, match=r"4bit holds weights that cannot be trained.*lora\.r=16"):
        run.parts()


def test_layers_on_paper_are_those_of_the_model(tmp_path):
    assert nn.Linear in HeldLinear.__mro__  # adapters go on it
    settings = {"quantization": "4bit", "lora": LoraConfig(r=4)}
    config = DPOConfig(model_name=TINY)
    paper = Run(DPO, config, ModelConfig(name=TINY, **settings), "32-true", "cpu", 1).parts().paper
    names = {n for n, part in paper.model.named_modules() if isinstance(part, HeldLinear)}
    real = DPO(config, ModelConfig(name=TINY, **settings)).policy.base_model
    assert names == set(quantized_layers(real))


@pytest.mark.parametrize("bits", ["none", "4bit"])
def test_the_reference_of_adapters_that_are_gone_on_with_is_a_copy_of_them(tmp_path, bits):
    model = ModelConfig(name=adapter_folder(tmp_path / "adapter"), quantization=bits)
    config = DPOConfig(model_name=model.name)
    parts = Run(DPO, config, model, "32-true", "cpu", 1).parts()
    adapters = size_of(p for p in parts.paper.trained)
    assert parts.reference_bytes - adapters == size_of(parts.paper.model.buffers())
    module = DPO(config, model)
    frozen = size_of(held(module)) + size_of(_scales(module)) - parts.weight_bytes
    assert frozen == adapters

"""``all-linear`` adapts the experts too, exactly; what it leaves out is said."""

import copy
import warnings

import pytest
import torch
from architectures import build
from helpers import config, run
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from rlmodules import PPO, LoraConfig, ModelConfig
from rlmodules.models import add_lora
from rlmodules.models.adapters import adapters_off
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.models.merging import merge_adapters
from rlmodules.models.saving import save_language_model

IDS = torch.tensor([[3, 50, 7, 110, 9, 14], [5, 6, 8, 200, 11, 31]])
FUSED = {  # parameters of the experts of a layer
    "mixtral": {"gate_up_proj", "down_proj"},
    "qwen2_moe": {"gate_up_proj", "down_proj"},
    "qwen3_moe": {"gate_up_proj", "down_proj"},
    "olmoe": {"gate_up_proj", "down_proj"},
    "deepseek_v3": {"gate_up_proj", "down_proj"},
    "gpt_oss": {"gate_up_proj", "down_proj"},
    "granitemoe": {"gate_up_proj", "down_proj"},
    "phimoe": {"gate_up_proj", "down_proj"},
    "jetmoe": {"weight"},
    "llama4_text": {"gate_up_proj", "down_proj"},
    "nemotron_h": {"up_proj", "down_proj"},
}

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves out", "ignore:.*takes? packed rows")


def adapted(name, **changes):
    """A model with adapters that change what it says."""
    torch.manual_seed(1)
    model = add_lora(build(name), LoraConfig(r=2, **changes), "CAUSAL_LM").eval()
    for own, weight in model.named_parameters():
        if "lora_B" in own:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def logits(model):
    return model(input_ids=IDS).logits


def fused(model):
    """The wrapped parameters of experts, by name."""
    parts = model.modules()
    return {part.parameter_name for part in parts if hasattr(part, "parameter_name")}


@pytest.mark.parametrize("name", FUSED)
def test_experts_are_adapted_exactly(tmp_path, name):
    model, base = adapted(name), logits(build(name))
    assert fused(model) - {"weight"} == FUSED[name] - {"weight"}
    assert any("experts" in name for name, _ in model.named_parameters() if "lora" in name)
    with adapters_off(model):
        assert_close(logits(model), base, rtol=0, atol=1e-5)
    said = logits(model)
    assert (said - base).abs().max() > 0.01
    said.float().square().mean().backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n and g is not None and g.abs().sum() > 0 for n, g in trained.items())
    assert any("experts" in n for n in trained)
    merged = logits(merge_adapters(copy.deepcopy(model)))
    assert_close(merged, said, rtol=0, atol=5e-5)  # another order of sums; adapters move 0.01
    for folder, merge in ((tmp_path / "merged", True), (tmp_path / "adapter", False)):
        save_language_model(model, tiny_tokenizer(), folder, merge=merge)
    assert_close(logits(model), said, rtol=0, atol=0)  # the model itself is not merged
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert_close(logits(whole), said, rtol=0, atol=5e-5)
    again = PeftModel.from_pretrained(build(name), tmp_path / "adapter").eval()
    assert_close(logits(again), said, rtol=0, atol=1e-6)


def test_a_run_moves_the_experts_adapters_and_exports_them_merged(tmp_path):
    build("mixtral").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    name = str(tmp_path / "base")
    c = config(model_name=name, num_iterations=1, learning_rate=1e-2)
    module = PPO(c, ModelConfig(name=name, dtype="float32", lora=LoraConfig(r=2)))
    before = {n: p.detach().clone() for n, p in module.base_model.named_parameters()}
    run(c, module, tmp_path)
    moved = {n for n, p in module.base_model.named_parameters() if not torch.equal(p, before[n])}
    assert any("experts" in n for n in moved) and all("lora_" in n for n in moved)
    module.export(tmp_path / "model", merge=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert_close(logits(plain), logits(module.base_model.eval()), rtol=0, atol=1e-5)


def test_gradients_are_the_same_when_activations_are_recomputed():
    gradients = []
    for recompute in (False, True):
        model = adapted("mixtral").train()
        if recompute:
            model.get_base_model().gradient_checkpointing_enable()
            model.enable_input_require_grads()
        logits(model).float().square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


# ----------------------------------------------------------------- what is left out


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("qwen2_moe", r"leaves out model\.layers\.\*\.mlp\.gate\.weight$"),
        ("deepseek_v3", r"leaves out .*\*\.mlp\.down_proj\.weight, .*shared_experts\.down_proj"),
        ("mamba", r"leaves out backbone\.layers\.\*\.mixer\.dt_proj\.weight, .*mixer\.out_proj"),
        ("longcat_flash", r"leaves out .*mlp\.router\.classifier\.weight"),
        ("zamba2", r"leaves out .*shared_transformer\.self_attn\.q_proj\.weight"),
        ("mamba2", r"leaves out backbone\.layers\.\*\.mixer\.out_proj\.weight$"),
        ("llama4_text", r"leaves out model\.layers\.\*\.feed_forward\.router\.weight$"),
        ("dbrx", r"leaves out .*experts\.mlp\.v1, .*experts\.mlp\.w1, .*experts\.mlp\.w2"),
    ],
)
def test_what_is_left_out_is_said_in_a_line(name, left):
    with pytest.warns(UserWarning, match=left):
        model = add_lora(build(name), LoraConfig(r=2), "CAUSAL_LM")
    logits(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "gemma2", "mixtral", "rwkv"])
def test_of_other_models_nothing_is_left_out(name):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*leaves out")
        add_lora(build(name), LoraConfig(r=2), "CAUSAL_LM")


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_take_no_dropout(name):
    with pytest.raises(ValueError, match=r"model\.lora\.dropout=0\.1: .*\*\.mlp\.experts\.gate_up"):
        add_lora(build(name), LoraConfig(r=2, dropout=0.1), "FEATURE_EXTRACTION")
    add_lora(build(name), LoraConfig(r=2, dropout=0.1, target_modules=["q_proj"]), "CAUSAL_LM")


def test_named_layers_are_adapted_alone():
    model = adapted("mixtral", target_modules=["q_proj"])
    assert fused(model) == set()
    assert all("q_proj" in n for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("targets", [["router", "q_proj"], r".*\.(router|q_proj)"])
def test_a_layer_that_only_looks_linear_is_refused_by_name(targets):
    with pytest.raises(ValueError, match=r"router.* names .*feed_forward\.router, which no ada"):
        add_lora(build("llama4_text"), LoraConfig(r=2, target_modules=targets), "CAUSAL_LM")


def test_a_loss_of_the_routers_that_is_asked_for_is_said_to_be_left_out():
    model = build("mixtral")
    model.config.output_router_logits = True
    with pytest.warns(UserWarning, match="routers' auxiliary loss"):
        PPO(config(model_name="given"), model=model, tokenizer=tiny_tokenizer())


def test_a_copy_of_an_adapted_model_is_one_of_its_own():
    model = adapted("mixtral")
    other = copy.deepcopy(model)
    assert_close(logits(other), logits(model), rtol=0, atol=0)

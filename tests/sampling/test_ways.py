"""Every architecture is written with in a way that gives each text what it gets alone."""

import copy
import warnings

import pytest
import torch
from architectures import build
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, MiniMaxConfig

from datamodules.experience import TokenBatch
from datamodules.types import SamplingParams
from rlmodules.models import PolicyModel, backbone
from rlmodules.models.embedded import tiny_model, tiny_tokenizer
from rlmodules.models.packing import takes_packed
from rlmodules.sampling import ways
from rlmodules.sampling.decoding import Decoding
from rlmodules.sampling.reading import AFRESH, APART, MERGED, PADDED
from rlmodules.sampling.ways import way_of

HYBRIDS = (
    "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "lfm2", "lfm2_moe", "nemotron_h", "falcon_h1",
    "granitemoehybrid", "jamba", "bamba", "zamba", "zamba2", "kimi_linear", "olmo_hybrid",
)  # fmt: skip
WAYS = {
    **dict.fromkeys(("llama", "gemma3_text", "gpt_oss", "bloom", "falcon:alibi"), PADDED),
    **dict.fromkeys((*HYBRIDS, "mamba", "mamba2", "falcon_mamba", "minimax"), MERGED),
    **dict.fromkeys(("bart", "deepseek_v32"), APART),
    **dict.fromkeys(("rwkv", "recurrent_gemma", "xlstm", "openai-gpt"), AFRESH),
}
STOPS = tuple(range(3, 60))


def asked(name, dtype=torch.float32):
    """A model, and the way it is written with; a slow one is announced."""
    model = PolicyModel(build(name).to(dtype))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*writes slowly.*")
        return model, way_of(model)


def texts(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 259, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def alone(model, prompt, tokens):
    """Log-probabilities of a response by one pass of transformers' model over this text alone."""
    ids = torch.cat([prompt, torch.tensor(tokens)])
    logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)


@pytest.mark.parametrize("name", WAYS)
def test_rows_that_join_repeat_and_leave_get_the_log_probabilities_of_each_text_alone(name):
    policy, way = asked(name)
    assert way == WAYS[name]
    first, second, third, single = texts(9, 5, 13, 1)
    prompts = [first, second, first, third, first, second]
    params = SamplingParams(max_new_tokens=10, stop_token_ids=STOPS)
    decoding = Decoding(policy, tiny_tokenizer())
    responses = decoding.admit(prompts, [params] * 6, range(6))
    decoding.step()
    decoding.step()
    responses += decoding.admit([single, third], [params] * 2, [6, 7])
    while decoding.rows:
        decoding.step()
    assert len({len(response.tokens) for response in responses}) > 3  # they left one by one
    prompts += [single, third]
    pairs = list(zip(prompts, responses, strict=True))
    said = torch.tensor([logprob for r in responses for logprob in r.logprobs])
    own = torch.cat([alone(policy.base_model, prompt, r.tokens) for prompt, r in pairs])
    assert_close(said, own, rtol=0, atol=5e-5)
    sequences = [torch.cat([prompt, torch.tensor(r.tokens)]) for prompt, r in pairs]
    positions = [torch.arange(len(p), len(s)) for p, s in zip(prompts, sequences, strict=True)]
    scores = policy.score(TokenBatch.collate(sequences, positions))
    assert_close(scores.logprobs, own, rtol=0, atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["qwen3_5_text", "lfm2", "nemotron_h", "falcon_h1", "jamba", "zamba2", "mamba"]
)
def test_recurrent_layers_are_merged_and_never_packed_in_any_precision(name, dtype):
    policy, way = asked(name, dtype)
    assert way == MERGED
    with pytest.warns(UserWarning, match="does not take packed rows"):
        assert not takes_packed(backbone(policy.base_model))


def test_a_mask_that_a_model_gets_wrong_is_not_used():
    """MiniMax counts columns in its first layer's keys; where that one is linear, it has none."""
    torch.manual_seed(0)
    config = MiniMaxConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2,
        layer_types=["linear_attention", "full_attention"] * 2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.mul_(10)
    with pytest.warns(UserWarning, match="writes slowly"):
        assert way_of(PolicyModel(model.eval())) != MERGED


@pytest.mark.parametrize("name", ["llama", "jamba", "bart", "rwkv"])
def test_the_question_is_asked_once_and_changes_nothing(name, monkeypatch):
    model = build(name).train()
    policy = PolicyModel(model)
    weights, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        way = way_of(policy)
        assert way_of(PolicyModel(model)) == way
    slow = [warning for warning in said if "writes slowly" in str(warning.message)]
    assert len(slow) == (way in (APART, AFRESH))
    assert all(module.training for module in model.modules())
    assert model.config.to_dict() == config
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
    monkeypatch.setattr(ways, "_trial", None)
    assert way_of(policy) == way


def test_an_ordinary_decoder_costs_a_few_short_passes():
    policy = PolicyModel(tiny_model()[0])
    sizes = []
    hook = backbone(policy.base_model).register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    assert way_of(policy) == PADDED
    hook.remove()
    assert len(sizes) == 14 and sum(sizes) < 600


def test_what_a_token_by_itself_does_otherwise_is_evened_out():
    """Mamba-2 with limits of its time step that bite, and RWKV's halved weights."""
    for name in ("zamba2", "nemotron_h"):
        model = build(name)
        for module in model.modules():
            if hasattr(module, "time_step_limit"):
                module.time_step_limit = (0.5, 0.9)
        before = model(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
        policy = PolicyModel(PolicyModel(model).base_model)  # a second time changes nothing
        after = model(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
        assert_close(after, before, rtol=0, atol=2e-5)
        assert way_of(policy) == MERGED
        twin = copy.deepcopy(policy)
        for module in twin.modules():
            if hasattr(module, "dt_bias"):
                module.dt_bias.data.add_(1.0)
        again = model(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
        assert torch.equal(again, after)  # a copy has limits of its own
        assert way_of(twin) == MERGED
    model = build("rwkv")
    model.config.rescale_every = 1
    weights = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        trained = model.train()(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
        model.eval()(input_ids=torch.arange(3, 15)[None])
        assert not torch.equal(model.rwkv.blocks[1].attention.output.weight,
                               weights["rwkv.blocks.1.attention.output.weight"])  # fmt: skip
        policy = PolicyModel(model)
        written = policy.last_logits([torch.arange(3, 15)])
        assert_close(written, trained[:, -1])
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("errors", "moved", "fits"),
    [
        ([[0.0, 0.0], [0.5, 0.0]], [0.04, 0.0], True),
        ([[0.0, 0.0], [0.5, 0.0]], [0.007, 0.0], False),
        ([[0.0, 0.0], [0.5, 0.0]], [0.0, 0.04], False),
        ([[0.0, 0.0], [float("nan"), 0.0]], [0.2, 0.2], False),
        ([[2e-4, 0.0], [0.0, 0.0]], [2e-5, 0.0], True),
        ([[2e-4, 0.0], [0.0, 0.0]], [3e-6, 0.0], False),
        ([[2e-4, 9e-5], [0.0, 9e-4]], [2e-5, 0.0], True),
        ([[2e-4, 2e-4], [0.0, 0.0]], [2e-5, 0.0], False),
    ],
)
def test_what_rounding_of_a_text_explains_of_that_text_refuses_no_way(
    errors, moved, fits, monkeypatch
):
    model = PolicyModel(tiny_model()[0])
    sharpness = iter(errors)
    states, texts = torch.zeros(2, model.base_model.config.hidden_size), [torch.tensor([3, 5])] * 2
    monkeypatch.setattr(ways, "_trial", lambda *_: (states, texts))
    monkeypatch.setattr(ways, "relative_errors", lambda *_: torch.tensor(next(sharpness)))
    monkeypatch.setattr(ways, "_moved_by_rounding", lambda *_: torch.tensor(moved))
    assert (ways._fault(model, backbone(model.base_model), PADDED) is None) is fits


def test_a_text_whose_states_hang_on_the_last_bit_makes_no_way_wrong():
    """As training made one of the texts of the trial: it moved a hundred times as far as others."""
    policy = PolicyModel(tiny_model()[0])
    body = backbone(policy.base_model)

    def magnify(module, args, kwargs, output):
        states, ids = output.last_hidden_state, kwargs["input_ids"]
        output.last_hidden_state = states.where((ids != 6)[..., None], (3e4 * states).sin())
        return output

    with body.register_forward_hook(magnify, with_kwargs=True):
        assert way_of(policy) == PADDED

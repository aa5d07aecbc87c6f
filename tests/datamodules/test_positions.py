"""How long a text may be: until a model's table ends, or rows change with their company."""

import pytest
import torch
from architectures import build, config_of
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    CamembertConfig,
    EsmConfig,
    Gemma3TextConfig,
    GPT2Config,
    LongformerConfig,
    MPNetConfig,
    MptConfig,
    OPTConfig,
    RobertaConfig,
    XLMRobertaConfig,
    XLNetConfig,
)

from datamodules import rewards
from datamodules.experience import TokenBatch
from datamodules.positions import Positions, positions_of
from datamodules.types import SamplingParams
from rlmodules import DPO, DPOConfig, ModelConfig, RewardModel, RewardModelConfig
from rlmodules.models import PolicyModel
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.sampling.decoding import sample

SMALL = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 4, "max_position_embeddings": 66}  # fmt: skip
BART = {"vocab_size": 259, "d_model": 32, "decoder_layers": 1, "encoder_layers": 1,
        "decoder_attention_heads": 4, "encoder_attention_heads": 4}  # fmt: skip
OPT = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
PADDED = {"pad_token_id": 1}
TABLES = {
    "bert": (BertConfig(**SMALL), 66),
    "roberta": (RobertaConfig(**SMALL, **PADDED), 64),
    "xlm-roberta": (XLMRobertaConfig(**SMALL, **PADDED), 64),
    "camembert": (CamembertConfig(**SMALL, **PADDED), 64),
    "mpnet": (MPNetConfig(**SMALL, **PADDED), 64),
    "longformer": (LongformerConfig(**SMALL, **PADDED, attention_window=4), 64),
    "esm": (EsmConfig(**SMALL, **PADDED, mask_token_id=4), 64),
    "opt": (OPTConfig(**OPT, ffn_dim=48, word_embed_proj_dim=32), 66),
    "bart": (BartConfig(**BART, max_position_embeddings=66), 66),
    "gpt2": (GPT2Config(vocab_size=259, n_embd=32, n_layer=1, n_head=4, n_positions=66), 66),
    "mpt": (MptConfig(vocab_size=259, d_model=32, n_layers=1, n_heads=4, max_seq_len=66), 66),
}
SCALED = ("llama:dynamic", "llama:longrope", "phi3:longrope", "phimoe:longrope",
          "minicpm3:longrope")  # fmt: skip


def of(config):
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    return model.get_decoder() if config.model_type == "bart" else model


@torch.no_grad()
@pytest.mark.parametrize("name", TABLES)
def test_a_text_of_all_positions_is_read_and_a_longer_one_is_not(name):
    config, count = TABLES[name]
    model = of(config)
    assert positions_of(model) == Positions(count)
    model(input_ids=torch.full((1, count), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, count + 1), 7))


@pytest.mark.parametrize("name", ["bloom", "mamba", "recurrent_gemma"])
def test_a_model_without_positions_has_no_limit(name):
    assert positions_of(build(name)) == Positions(None)
    assert positions_of(build(name)).hold(10**9)


def test_a_table_of_patches_is_none_of_tokens():
    assert positions_of(build("git")).count == config_of("git").max_position_embeddings
    assert positions_of(AutoModel.from_config(XLNetConfig(d_model=32, n_layer=1, n_head=4))) == (
        Positions(None)
    )


@torch.no_grad()
@pytest.mark.parametrize("name", SCALED)
def test_rows_depend_on_their_company_beyond_the_positions_alone(name):
    model = build(name)
    positions = positions_of(model)
    kind = name.partition(":")[2]
    rope = model.config.rope_parameters
    original = rope.get("original_max_position_embeddings") or model.config.max_position_embeddings
    assert positions.count == original < 64
    assert f"its {kind} scaling changes all" in str(positions)
    text, other = torch.arange(3, 13), torch.arange(40, 41 + original)
    alone = model(input_ids=text[None], use_cache=False).logits[0]

    def beside(length):
        rows = torch.nn.utils.rnn.pad_sequence([text, other[:length]], batch_first=True)
        return model(input_ids=rows, use_cache=False).logits[0, :10]

    assert_close(beside(original), alone, rtol=0, atol=2e-5)
    assert (beside(original + 1) - alone).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama:linear", "llama:yarn", "llama:llama3"])
def test_frequencies_that_stay_leave_all_positions(name):
    assert positions_of(build(name)) == Positions(config_of(name).max_position_embeddings)


def test_a_kind_of_layer_may_have_a_scaling_of_its_own():
    plain = {"rope_type": "default", "rope_theta": 10_000.0}
    dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    config = Gemma3TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=8,
        rope_parameters={"full_attention": dynamic, "sliding_attention": plain},
    )  # fmt: skip
    positions = positions_of(AutoModelForCausalLM.from_config(config))
    assert positions.count == 66 and "dynamic scaling" in positions.reason


# ------------------------------------------------------------------------- who refuses


def test_longer_texts_are_refused_by_the_reason_wherever_they_come_from(tmp_path):
    model, tokenizer = build("phi3:longrope"), tiny_tokenizer()
    policy = PolicyModel(model)
    count, text = policy.positions.count, torch.arange(3, 13)
    refusal = f"{count} positions of the model .*longrope scaling"
    too_long = f"10 tokens and max_new_tokens={count} exceed the {refusal}"
    with pytest.raises(ValueError, match=too_long):
        sample(policy, tokenizer, [text], SamplingParams(count), [0])
    (response,) = sample(policy, None, [text], SamplingParams(count - 10), [0])
    assert len(response.tokens) <= count - 10
    long = torch.arange(3, count + 5)
    with pytest.raises(ValueError, match=f"{count + 1} tokens exceeds the {refusal}"):
        policy.score(TokenBatch.collate([long], [torch.arange(1, len(long))]))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    c = {"max_length": count + 1, "max_prompt_length": 8, "device": "cpu"}
    with pytest.raises(ValueError, match=f"algo.max_length={count + 1} exceeds the {refusal}"):
        DPO(DPOConfig(str(tmp_path), **c), ModelConfig(str(tmp_path)))


def test_an_encoder_is_refused_what_its_positions_do_not_hold(tmp_path):
    config = TABLES["roberta"][0]
    settings = {"model_name": "given", "max_prompt_length": 8}
    with pytest.raises(ValueError, match=r"algo\.max_length=66 exceeds the 64 positions"):
        RewardModel(RewardModelConfig(**settings, max_length=66), base_model=of(config))
    model = RewardModel(RewardModelConfig(**settings, max_length=64), base_model=of(config))
    assert len(model(torch.full((1, 64), 7))["rewards"]) == 1
    with pytest.raises(ValueError, match="a text of 65 tokens exceeds the 64 positions"):
        model(torch.full((1, 65), 7))


def test_a_classifier_is_given_what_its_positions_hold():
    config = RobertaConfig(**SMALL, **PADDED, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    scorer = rewards.scorers.Classifier(model, tiny_tokenizer())
    assert scorer.limits.max_length == 64

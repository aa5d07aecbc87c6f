"""Tokens that the model does not know are refused before anything is trained, with both numbers."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlmodules import (
    DPO,
    ORPO,
    PPO,
    SFT,
    AsyncTrainingClient,
    DPOConfig,
    ORPOConfig,
    PPOConfig,
    RewardModel,
    RewardModelConfig,
    SFTConfig,
)
from rlmodules.models import LoraConfig, PolicyModel, add_lora
from rlmodules.models.embedded import tiny_model, tiny_tokenizer
from rlmodules.models.vocabulary import match_tokenizer, vocabulary_size
from rlmodules.sampling.decoding import sample

SHORT = {"model_name": "given", "max_length": 64, "max_prompt_length": 32}
MAKERS = {
    "ppo": lambda model, tokenizer: PPO(
        PPOConfig(model_name="given"), model=model, tokenizer=tokenizer
    ),
    "dpo": lambda model, tokenizer: DPO(DPOConfig(**SHORT), model=model, tokenizer=tokenizer),
    "sft": lambda model, tokenizer: SFT(
        SFTConfig(model_name="given", max_length=64), model=model, tokenizer=tokenizer
    ),
    "orpo": lambda model, tokenizer: ORPO(ORPOConfig(**SHORT), model=model, tokenizer=tokenizer),
    "reward": lambda model, tokenizer: RewardModel(
        RewardModelConfig(**SHORT), base_model=model.model, tokenizer=tokenizer
    ),
    "client": lambda model, tokenizer: AsyncTrainingClient(
        model, device="cpu", tokenizer=tokenizer
    ).shutdown(),
}


def added(token: str):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([token])
    return tokenizer


def padded():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def seeing():
    """As Gemma 3's tokenizer beside the model of 1B, which sees no images."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer,
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image_soft_token>"},
    )


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("tokenizer", "token"), [(added("<think>"), "<think>"), (padded(), r"\[PAD\]")]
)
def test_a_token_beyond_the_embeddings_is_refused_at_the_start(make, tokenizer, token):
    said = rf"260 tokens.* embeddings for 259.*'{token}' \(259\).*resize_token_embeddings\(260\)"
    with pytest.raises(ValueError, match=said):
        MAKERS[make](tiny_model()[0], tokenizer)


@pytest.mark.parametrize("make", MAKERS)
def test_more_embeddings_than_tokens_and_an_enlarged_model_are_fine(make):
    tokenizer = added("<think>")
    for size in (260, 320):
        model = tiny_model()[0]
        model.resize_token_embeddings(size)
        MAKERS[make](model, tokenizer)


def test_the_smaller_of_embeddings_and_head_counts_with_adapters_too():
    model = tiny_model()[0]
    model.resize_token_embeddings(300)
    assert vocabulary_size(model) == vocabulary_size(PolicyModel(model).base_model) == 300
    model.lm_head = torch.nn.Linear(64, 280, bias=False)
    assert vocabulary_size(model) == 280
    assert vocabulary_size(add_lora(model, LoraConfig(r=2), "CAUSAL_LM")) == 280
    assert vocabulary_size(tiny_model()[0].model) == 259


def knowing_the_unknown():
    """As Qwen's classes add a token for unknown characters to whatever vocabulary they load."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"unk_token": "<|endoftext|>"})
    return tokenizer


@pytest.mark.parametrize("tokenizer", [seeing, knowing_the_unknown])
@pytest.mark.parametrize("make", MAKERS)
def test_tokens_that_text_does_without_may_be_beyond(make, tokenizer):
    MAKERS[make](tiny_model()[0], tokenizer())


def test_a_token_that_text_does_without_may_not_be_beyond_if_it_pads_too():
    tokenizer = knowing_the_unknown()
    tokenizer.pad_token = tokenizer.unk_token
    with pytest.raises(ValueError, match=r"260 tokens.*'<\|endoftext\|>' \(259\)"):
        match_tokenizer(tiny_model()[0], tokenizer)


def test_a_text_with_a_placeholder_is_refused_by_its_id():
    model, tokenizer = tiny_model()[0], seeing()
    match_tokenizer(model, tokenizer)
    text = torch.tensor(tokenizer("a<image_soft_token>b")["input_ids"])
    with pytest.raises(ValueError, match="the token 259, the model knows 0 to 258"):
        sample(model, tokenizer, [text], PPO(PPOConfig(model_name="random:tiny")).sampling, [0])
    reward = RewardModel(RewardModelConfig(**SHORT), base_model=model.model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="the token 259, the model knows 0 to 258"):
        reward.predict_rewards(["a<image_soft_token>b"])


@pytest.mark.parametrize("wrong", [-1, 259])
def test_scores_of_ids_that_are_none_are_refused(wrong):
    from datamodules.experience import TokenBatch

    tokens = TokenBatch.collate([torch.tensor([5, wrong, 7])], [torch.tensor([2])])
    with pytest.raises(ValueError, match=f"the token {wrong}, the model knows 0 to 258"):
        PolicyModel(tiny_model()[0]).score(tokens)

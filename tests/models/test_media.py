"""Models of images and text, on text: computed as by the whole, and trained where they read."""

import warnings

import pytest
import torch
from architectures import build, build_seeing
from helpers import run
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from datamodules.experience import TokenBatch
from datamodules.types import SamplingParams
from rlmodules import PPO, LoraConfig, ModelConfig, PPOConfig, RewardModel, RewardModelConfig
from rlmodules.models import load_model
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.models.media import unreached
from rlmodules.sampling.decoding import sample

WHOLE = ("aya_vision", "gemma3", "gemma4", "idefics3", "internvl", "llava", "mistral3", "mllama",
         "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm")  # fmt: skip
"""Loaded whole."""
ALONE = ("llama4", "qwen3_5")
"""Of which transformers takes the language model out of the checkpoint."""
REFUSED = ("blip-2", "instructblip", "pix2struct")
TEXTS = [[3, 50, 7, 110, 9, 14], [5, 6, 8]]

pytestmark = pytest.mark.filterwarnings("ignore:no text reaches", "ignore:.*takes? packed rows")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints by name, made when they are first asked for."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name.replace("-", "_"))
            build_seeing(name).save_pretrained(made[name])
            tiny_tokenizer().save_pretrained(made[name])
            (made[name] / "preprocessor_config.json").write_text('{"size": 28}')
        return made[name]

    return of


def policy(folder, rank=0) -> PPO:
    config = PPOConfig(
        model_name=str(folder), batch_size=4, mini_batch_size=4, ppo_epochs=1, max_new_tokens=4,
        num_iterations=1, learning_rate=1e-2, device="cpu",
    )  # fmt: skip
    lora = LoraConfig(r=rank, target_modules=["q_proj", "v_proj", "down_proj"])
    return PPO(config, ModelConfig(name=str(folder), dtype="float32", lora=lora))


@pytest.mark.parametrize("name", [*WHOLE, *ALONE])
def test_text_is_scored_and_continued_as_by_the_whole_model(folders, name):
    module, whole = policy(folders(name)), build_seeing(name)
    sequences = [torch.tensor(text) for text in TEXTS]
    logits = [whole(input_ids=text[None]).logits[0].float() for text in sequences]
    at = [torch.arange(1, len(text)) for text in sequences]
    found = module.policy.score(TokenBatch.collate(sequences, at)).logprobs
    expected = [
        row.log_softmax(-1)[i - 1, text[i]]
        for row, text, i in zip(logits, sequences, at, strict=True)
    ]
    assert_close(found, torch.cat(expected), rtol=0, atol=2e-5)

    greedy = SamplingParams(5, temperature=0)
    said = sample(module.policy, module.tokenizer, sequences, greedy, [0, 1])
    for text, response in zip(TEXTS, said, strict=True):
        for i, token in enumerate(response.tokens):
            so_far = torch.tensor([text + response.tokens[:i]])
            assert token == int(whole(input_ids=so_far).logits[0, -1].argmax())


@pytest.mark.parametrize(
    ("name", "rank"), [(name, 0) for name in WHOLE] + [("gemma3", 2), ("llava", 2), ("smolvlm", 2)]
)
def test_a_tower_that_text_never_reaches_is_not_trained_not_adapted_and_exported(
    folders, tmp_path, name, rank
):
    with pytest.warns(UserWarning, match=r"no text reaches model\.\w+.*parameters stay"):
        module = policy(folders(name), rank)
    model = module.base_model.get_base_model() if rank else module.base_model
    towers = tuple(f"{part}." for part in unreached(model))
    assert towers and all("language_model" not in part for part in towers)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and not any(n.startswith(towers) for n in trained)
    assert not any("lora" in n for n, _ in model.named_parameters() if n.startswith(towers))
    run(module.config, module, tmp_path)
    in_optimizer = {
        id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]
    }
    names = dict(model.named_parameters())
    assert not any(id(names[n]) in in_optimizer for n in names if n.startswith(towers))

    module.export(tmp_path / "model", merge=True)
    before = AutoModelForImageTextToText.from_pretrained(folders(name)).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").state_dict()
    assert before.keys() == after.keys()
    moved = {n for n in before if not torch.equal(before[n], after[n].to(before[n].dtype))}
    assert moved and not any(n.startswith(towers) for n in moved)
    assert (tmp_path / "model" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("name", ALONE)
def test_a_language_model_that_is_taken_out_is_exported_alone(folders, tmp_path, name):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no text reaches")
        module = policy(folders(name))
    module.export(tmp_path / "model")
    ids = torch.tensor([TEXTS[0]])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert_close(loaded(input_ids=ids).logits, build_seeing(name)(input_ids=ids).logits)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_does_not_continue_text_by_itself_is_refused(folders, name):
    with pytest.raises(ValueError, match=r"not continue text by itself|not supported yet"):
        policy(folders(name))


@pytest.mark.parametrize(
    ("name", "rank"),
    [(name, 0) for name in (*WHOLE, *ALONE) if name != "mllama"]
    + [("gemma3", 2), ("qwen2_5_vl", 2)],
)
def test_a_reward_model_is_made_of_the_language_model(folders, tmp_path, name, rank):
    config = RewardModelConfig(
        model_name=str(folders(name)), max_length=64, max_prompt_length=32, dropout_prob=0.0
    )
    model = RewardModel(
        config, ModelConfig(name=str(folders(name)), dtype="float32", lora=LoraConfig(r=rank))
    )
    torch.nn.init.normal_(model.head.linear.weight, generator=torch.Generator().manual_seed(0))
    hidden = build_seeing(name)(
        input_ids=torch.tensor([TEXTS[0]]), output_hidden_states=True
    ).hidden_states[-1]
    expected = model.scores(hidden[:, -1])[0].tolist()
    assert model.predict_ids(TEXTS[:1]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert all("language_model" not in n and "vision" not in n for n in model.state_dict())
    model.export(tmp_path)
    again = RewardModel.from_pretrained(tmp_path)
    assert again.predict_ids(TEXTS) == pytest.approx(model.predict_ids(TEXTS), abs=1e-5)


def test_a_language_model_that_could_not_be_loaded_again_makes_no_reward_model(folders):
    config = RewardModelConfig(model_name=str(folders("mllama")))
    with pytest.raises(ValueError, match="MllamaModel cannot be loaded by itself"):
        RewardModel(config)


def test_a_given_body_of_images_and_text_is_read_for_its_language_model(folders):
    body = AutoModel.from_pretrained(folders("llava"))
    config = RewardModelConfig(model_name="given", max_length=64, max_prompt_length=32)
    assert RewardModel(config, base_model=body).base_model is body.language_model


def test_a_text_classifier_comes_out_of_a_model_of_images_and_text(folders, tmp_path):
    config = RewardModelConfig(
        model_name=str(folders("llava")), max_length=64, max_prompt_length=32
    )
    model = RewardModel(config)
    torch.nn.init.normal_(model.head.linear.weight)
    model.export(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    found = classifier(input_ids=torch.tensor([TEXTS[0]])).logits[0].tolist()
    assert found == pytest.approx(model.predict_ids(TEXTS[:1]), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("git", ["git.image_encoder", "git.visual_projection"]),
        ("phi4_multimodal", ["model.embed_tokens_extend.image_embed", "model.embed_tokens_extend"]),
    ],
)
def test_towers_inside_of_a_backbone_are_found(name, parts):
    assert set(unreached(build(name))) & set(parts)


def test_a_model_of_text_alone_is_reached_whole():
    assert unreached(load_model(ModelConfig(name="random:tiny"))) == []

"""What is counted on paper, against the bytes of real tensors in the real passes."""

from functools import partial

import distillation_helpers
import kto_helpers
import pytest
import sft_helpers
import torch
from helpers import config as ppo_config
from pair_helpers import dataset
from transformers import LlamaConfig

from datamodules.experience import Experience
from rlmodules import (
    DPO,
    GRPO,
    KTO,
    PPO,
    SFT,
    Distillation,
    DPOConfig,
    GRPOConfig,
    KTOConfig,
    RewardModel,
    RewardModelConfig,
    SFTConfig,
)
from rlmodules.functional.logprobs import CHUNK_BYTES
from rlmodules.memory.depth import Deep
from rlmodules.memory.live import LiveBytes
from rlmodules.memory.longest import groups_of
from rlmodules.memory.parts import GRADIENTS, WEIGHTS, held, size_of
from rlmodules.memory.passes import distill, evaluate, sample, update, update_rewards
from rlmodules.memory.run import Run
from rlmodules.memory.texts import Group
from rlmodules.models import LoraConfig, ModelConfig
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.models.loading import has_native_bf16

TINY = "random:tiny"


def parts_of(kind, config, precision="32-true", **model):
    return Run(kind, config, ModelConfig(name=TINY, **model), precision, "cpu", 1).parts()


def peak(peaks):
    return max(sum(parts.values()) for parts in peaks.values())


def counted(module, autocast, passed):
    """The most that is alive while ``passed`` makes a loss and its gradients, weights included."""
    live = LiveBytes()
    with live:
        live.add_weights(held(module), WEIGHTS)
        live.begin("all")
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = passed()
        loss.backward()
    return peak(live.peaks)


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_dpo_takes_what_is_counted_on_paper(lora, precision, checkpointing):
    settings = {"lora": LoraConfig(r=lora), "gradient_checkpointing": checkpointing}
    config = DPOConfig(model_name=TINY, gradient_accumulation_steps=1)
    module = DPO(config, ModelConfig(name=TINY, **settings))
    assert module.policy.packs
    rows = dataset()
    batch = rows.batch(range(8), rows.totals(range(8)), "train")
    real = counted(module, precision != "32-true", lambda: module.losses(batch)[0])
    parts = parts_of(DPO, config, precision, **settings)
    assert parts.weight_bytes + parts.reference_bytes == size_of(held(module))
    groups = groups_of(rows, reads_prompts=False)
    found = update(parts, groups, compared=groups)
    assert peak(found) - parts.optimizer_bytes == pytest.approx(real, rel=0.02)


def test_a_step_of_ppo_takes_what_is_counted_on_paper():
    config = ppo_config()
    module = PPO(config)
    group = Group.of_prompt(20, [16])
    texts = group.texts() * 4
    mask = torch.ones(4, 16, dtype=torch.bool)
    nothing = torch.zeros(4, 16)
    positions = [torch.arange(20, 36)] * 4
    batch = Experience(texts, positions, mask, nothing, nothing, nothing, nothing)
    real = counted(module, False, lambda: module._loss(batch.minibatch(range(4), 64.0))[0])
    parts = parts_of(PPO, config)
    found = update(parts, [group] * 4, entropy=True, values=True)
    backward = {k: v for k, v in found.items() if "backward" in k}
    assert peak(backward) - parts.optimizer_bytes == pytest.approx(real, rel=0.02)


def test_a_step_of_a_reward_model_takes_what_is_counted_on_paper():
    config = RewardModelConfig(model_name=TINY, gradient_accumulation_steps=1)
    module = RewardModel(config)
    rows = dataset(close=False)
    batch = rows.batch(range(8), rows.totals(range(8)), "train")
    real = counted(module, False, lambda: module.losses(batch)[0])
    parts = parts_of(RewardModel, config)
    assert parts.weight_bytes == size_of(held(module))
    found = update_rewards(parts, groups_of(rows, reads_prompts=False), with_mask=False)
    backward = {k: v for k, v in found.items() if "backward" in k}
    assert peak(backward) - parts.optimizer_bytes == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("completion_only", [None, False])
def test_a_step_of_sft_takes_what_is_counted_on_paper(lora, completion_only):
    model = {"lora": LoraConfig(r=lora)}
    config = SFTConfig(model_name=TINY, completion_only_loss=completion_only)
    module = SFT(config, ModelConfig(name=TINY, **model))
    rows = sft_helpers.dataset(completion_only_loss=completion_only)
    real = counted(module, False, lambda: module.losses(sft_helpers.batch_of(rows))[0])
    parts = parts_of(SFT, config, **model)
    assert parts.weight_bytes == size_of(held(module))
    found = update(parts, groups_of(rows, reads_prompts=False))
    assert peak(found) - parts.optimizer_bytes == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_a_step_of_kto_takes_what_is_counted_on_paper(lora, loss_type):
    model = {"lora": LoraConfig(r=lora)}
    config = KTOConfig(model_name=TINY, loss_type=loss_type)
    module = KTO(config, ModelConfig(name=TINY, **model))
    rows = kto_helpers.dataset()
    real = counted(module, False, lambda: module.losses(kto_helpers.batch_of(rows))[0])
    run = Run(KTO, config, ModelConfig(name=TINY, **model), "32-true", "cpu", 1)
    parts, groups = run.parts(), groups_of(rows, reads_prompts=False)
    assert parts.weight_bytes + parts.reference_bytes == size_of(held(module))
    found = update(parts, groups, compared=run.compared(groups))
    # Responses to other prompts that begin alike are computed once, and counted apart.
    assert -0.02 < (peak(found) - parts.optimizer_bytes) / real - 1 < 0.05


def episodes(groups):
    """A minibatch of texts of those lengths, each learned from where its response is."""
    texts = [text for group in groups for text in group.texts()]
    spans = [span for g in groups for span in zip(g.starts, g.lengths, strict=True)]
    positions = [torch.arange(start, end) for start, end in spans]
    mask = torch.ones(len(texts), len(positions[0]), dtype=torch.bool)
    nothing = torch.zeros(mask.shape)
    batch = Experience(texts, positions, mask, nothing, nothing)
    return batch.minibatch(range(len(texts)), float(mask.sum()))


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """The folder of a teacher of another width and depth than the policy's."""
    folder = str(tmp_path_factory.mktemp("teacher"))
    distillation_helpers.fresh().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("chunk", [None, 20], ids=["one chunk", "chunks"])
def test_a_step_of_distillation_takes_what_is_counted_on_paper(
    lora, precision, chunk, wider, monkeypatch
):
    if chunk:
        monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * 257 * chunk)
    model = ModelConfig(name=TINY, lora=LoraConfig(r=lora))
    config = distillation_helpers.config(
        teacher_model_name_or_path=wider, gradient_accumulation_steps=1
    )
    module, groups = Distillation(config, model), [Group.of_prompt(n, [90]) for n in (20, 9, 31)]
    assert module.policy.packs and module.reference.model.packs
    batch = episodes(groups)
    real = counted(module, precision != "32-true", lambda: module.training_step(batch, 0))
    run = Run(Distillation, config, model, precision, "cpu", 1, half=has_native_bf16())
    parts = run.parts()
    assert parts.weight_bytes + parts.reference_bytes == size_of(held(module))
    found = distill(parts, groups, beta=config.beta, temperature=config.temperature)
    assert peak(found) - parts.optimizer_bytes == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("steps", [{"batch_size": 8}, {"batch_size": 16}, {"beta": 0.1}])
def test_what_is_scored_again_is_known_without_the_module(steps):
    config = GRPOConfig(model_name=TINY, **{"batch_size": 8, "mini_batch_size": 8} | steps,
                        gradient_accumulation_steps=1)  # fmt: skip
    run, module = Run(GRPO, config, ModelConfig(name=TINY), "32-true", "cpu", 1), GRPO(config)
    assert (run.recompute, run.has_reference) == (module.recompute, module.has_reference)


def deep(folder, layers=11, width=32):
    LlamaConfig(
        vocab_size=300, hidden_size=width, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def test_few_layers_say_what_many_take(tmp_path):
    deep(tmp_path)
    config = ppo_config(model_name=str(tmp_path))
    run = Run(PPO, config, ModelConfig(name=str(tmp_path)), "bf16-mixed", "cpu", 1)
    drawn = Deep(run.parts())
    assert drawn.depths == (2, 4)
    short, long = [Group.of_prompt(3, [2])], [Group.of_prompt(90, [60])] * 9
    for passed in (
        partial(update, groups=short, entropy=True, values=True),
        partial(update, groups=long, entropy=True, values=True),
        partial(evaluate, groups=long),
        partial(sample, prompts=[9, 7], rows=4, new=12),
    ):
        assert sum(drawn.peak(passed).values()) == peak(passed(drawn.parts))


def test_few_layers_say_what_a_deep_teacher_takes(tmp_path):
    names = [deep(tmp_path / "policy"), deep(tmp_path / "teacher", layers=17, width=64)]
    config = distillation_helpers.config(model_name=names[0], teacher_model_name_or_path=names[1])
    run = Run(Distillation, config, ModelConfig(name=names[0]), "bf16-mixed", "cpu", 1)
    parts, long = run.parts(), [Group.of_prompt(90, [60])] * 9
    told = {"beta": 1.0, "temperature": 1.0}
    for whole, passed in (
        (parts, partial(distill, groups=[Group.of_prompt(3, [2])], **told)),
        (parts, partial(distill, groups=long, **told)),
        (parts, partial(evaluate, groups=long)),
        (parts.of_teacher(), partial(sample, prompts=[9, 7], rows=4, new=12)),
    ):
        assert sum(Deep(whole).peak(passed).values()) == peak(passed(whole))


def test_the_cache_holds_keys_and_values_of_every_token_of_every_row():
    parts = parts_of(PPO, ppo_config())
    found = sample(parts, [30], rows=5, new=12)["drawing"]
    kept = 2 * 2 * 16 * 4  # keys and values of 2 heads of 16 numbers in float32
    assert found["KV cache"] == 2 * 5 * 42 * kept  # of 2 layers; 30 read, 12 written
    assert GRADIENTS not in found  # a step has let go of them


def test_a_teacher_that_writes_keeps_its_own_cache_beside_none_of_the_policys(wider):
    config = distillation_helpers.config(teacher_model_name_or_path=wider)
    parts = parts_of(Distillation, config, dtype="float32")
    found = sample(parts.of_teacher(), [30], rows=5, new=12)["drawing"]
    assert found["KV cache"] == 3 * 5 * 42 * 2 * 2 * 24 * 4  # 3 layers, 2 heads of 24 numbers
    assert found[WEIGHTS] == parts.reference_bytes

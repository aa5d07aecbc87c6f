"""A name that no option has is refused, and the nearest that there is is suggested."""

import inspect

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from rlmodules import DPOConfig, GRPOConfig, ModelConfig, PPOConfig, RewardModelConfig, schemas
from rlmodules.schemas.fields import CONF, every_field
from rlmodules.schemas.names import SYNONYMS

TRAINER = frozenset(inspect.signature(L.Trainer).parameters)


def said(*overrides):
    """What a run with these overrides says of its names; None where it has none to refuse."""
    schemas.register()
    try:
        with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
            cfg = compose("train", [*overrides, "paths.output_dir=/tmp"])
        schemas.refuse_unknown(cfg, TRAINER)
    except (HydraException, OmegaConfBaseException) as error:
        return schemas.explain(error, lambda: TRAINER)
    except ValueError as error:
        return str(error)
    finally:
        GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("algo.lr=0.5", "no `lr` in algo: did you mean learning_rate?"),
        ("+algo.lr=0.5", "no `lr` in algo: did you mean learning_rate?"),
        ("++algo.lr=0.5", "no `lr` in algo: did you mean learning_rate?"),
        ("algo={lr:0.5}", "no `lr` in algo: did you mean learning_rate?"),
        ("lr=0.5", "no `lr` in the config: did you mean algo.learning_rate?"),
        ("optimizer.name=muon", "no `optimizer` in the config: did you mean algo.optimizer.name?"),
        ("algo.optim=muon", "no `optim` in algo: did you mean algo.optimizer.name?"),
        ("algo.optimizer=muon", "algo.optimizer holds several options, as algo.optimizer.NAME=..."),
        ("algo.clip_ration=0.5", "no `clip_ration` in algo: did you mean clip_ratio?"),
        ("algo.kl_coef=1", "no `kl_coef` in algo: did you mean kl_penalty_coef?"),
        ("algo=grpo algo.kl_coef=1", "no `kl_coef` in algo: did you mean beta?"),
        ("algo=dpo algo.num_train_epochs=3", "did you mean num_epochs?"),
        ("algo.num_train_epochs=3", "did you mean num_iterations?"),
        ("algo.per_device_train_batch_size=3", "did you mean batch_size?"),
        ("algo.eval_size=3", "no `eval_size` in algo: did you mean data.eval_size?"),
        ("algo.lora_rank=3", "no `lora_rank` in algo: did you mean model.lora.r?"),
        ("model.lora.rank=3", "no `rank` in model.lora: did you mean r?"),
        ("+model.load_in_4bit=true", "no `load_in_4bit` in model: there are "),
        (
            "algo=grpo experiment=chat_lora",
            "experiment/chat_lora: Key 'ppo_epochs' not in 'GRPOConfig' (algo.ppo_epochs): mend it"
            " in that file, or take another experiment or algo",
        ),
        ("modl=tiny", "no `modl` in the config: did you mean model?"),
        ("algo=pp0", "there is no algo=pp0: did you mean ppo?"),
        ("env=maths", "there is no env=maths: did you mean math?"),
        ("reward=lenght", "there is no reward=lenght: did you mean length?"),
        ("reward=xyz", "there is no reward=xyz: there are function, judge, length, model,"),
        ("env=math env.difficulti=3", "no `difficulti` in env: did you mean difficulty?"),
        ("+data.evalsize=3", "no `evalsize` in data: did you mean eval_size?"),
        ("+reward.timeout=3", "no `timeout` in reward: did you mean timeout_s?"),
        ("+export.merg=true", "no `merg` in export: did you mean merge?"),
        ("+paths.output=x", "no `output` in paths: did you mean output_"),
        ("+nothing=1", "no `nothing` in the config: there are algo,"),
        ("+task.out=x", "no `out` in task"),
        ("trainer.max_step=3", "no `max_step` in trainer: did you mean max_steps?"),
        ("+trainer.max_step=3", "no `max_step` in trainer: did you mean max_steps?"),
        ("trainer.max_time=3", "no `max_time` in trainer yet: write +trainer.max_time=..."),
        ("callbacks.bst.mode=min", "no `bst` in callbacks: did you mean best? (+callbacks.bst"),
        ("env=custom env._target_=a.b env.x=1", "(+env.x=... adds it)"),
        ("data.prompts=[Hello!]", """quote what is text, as in 'data.prompts=["Say hello!"""),
        ("algo.batch_size=many", "algo.batch_size=many: Value 'many' of type 'str' could not"),
    ],
)
def test_a_name_that_there_is_not_is_refused_with_the_nearest(overrides, sentence):
    answer = said(*overrides.split(" "))
    assert answer is not None and sentence in answer
    assert "Hydra" not in answer and "struct" not in answer


@pytest.mark.parametrize(
    "overrides",
    [
        "algo=grpo env=code",  # whose YAML suggests a length
        "algo=grpo env=code algo.max_new_tokens=6",  # which nothing reads then
        "task=collect_preferences out=pairs.jsonl",
        "+trainer.max_steps=3",
        "+callbacks.mine._target_=a.b +callbacks.mine.x=1",
        "env=custom env._target_=a.b +env.x=1",
        "env=math env.reward_weights={correct:1.0}",
        "env=math +env.reward_weights.correct=1.0",
        "env=reasoning_gym +env.config.leg_counting.max_animals=4",
        "env=reasoning_gym env.config={leg_counting:{max_animals:4}}",
        "+mine=3 seed=${mine}",  # somebody reads it
    ],
)
def test_what_something_reads_is_not_refused(overrides):
    assert said(*overrides.split(" ")) is None


def test_an_error_without_a_message_is_told_by_its_kind():
    assert schemas.explain(HydraException(), tuple) == "HydraException, without a message"


def test_every_synonym_leads_to_an_option_that_there_is():
    paths = {field.path for field in every_field()} | {f"trainer.{name}" for name in TRAINER}
    leaves = {path.rpartition(".")[2] for path in paths}
    for name, meant in SYNONYMS.items():
        for other in meant:
            assert other in (paths if "." in other else leaves), f"{name} -> {other}"


@pytest.mark.parametrize(
    ("config", "values", "close"),
    [
        (GRPOConfig, {"loss_type": "dappo"}, "dapo"),
        (GRPOConfig, {"importance_sampling_level": "sequences"}, "sequence"),
        (GRPOConfig, {"baseline": "leave-one-out"}, "leave_one_out"),
        (DPOConfig, {"loss_type": "sigmiod"}, "sigmoid"),
        (DPOConfig, {"loss_type": ["sft", "hinges"]}, "hinge"),
        (DPOConfig, {"lr_scheduler_type": "cosin"}, "cosine"),
        (PPOConfig, {"kl_estimator": "K1"}, "k1"),
        (RewardModelConfig, {"pooling_strategy": "mena"}, "mean"),
        (ModelConfig, {"dtype": "bfloat"}, "bfloat16"),
        (ModelConfig, {"attn_implementation": "spda"}, "sdpa"),
    ],
)
def test_a_value_that_is_a_misspelt_name_is_refused_with_the_nearest(config, values, close):
    name = next(iter(values))
    with pytest.raises(ValueError, match=rf"{name}=.*did you mean {close}\?"):
        config(**values)


def test_a_run_ends_in_that_sentence_alone(command):
    for override in ("algo.lr=0.5", "+algo.lr=0.5"):
        output = command("model=tiny", override, status=1)
        assert "no `lr` in algo: did you mean learning_rate?" in output
        assert "HYDRA_FULL_ERROR" not in output and "+algo.lr" not in output
    output = command("algo=pp0", status=1)
    assert output.strip() == "there is no algo=pp0: did you mean ppo?"

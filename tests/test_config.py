"""Every configuration composes; mistakes are refused with the field's name."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import datamodules
from rlmodules import GRPOConfig, ModelConfig, PPOConfig, schemas
from rlmodules.resuming.table import KNOWN, Effect
from rlmodules.schemas import derive
from rlmodules.schemas.fields import every_field

CONF = Path(__file__).parent.parent / "conf"
REFUSED = (ConfigCompositionException, HydraException, OmegaConfBaseException, ValueError)
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml") if path.stem != "README"
)
NEEDS = {  # what the user must give besides
    "model=hf": ["model.name=random:tiny"],
    "reward=function": ["reward.path=tests.rewards:fn"],
    "reward=model": ["reward.path=some/folder"],
    "reward=judge": ["reward.url=http://localhost:8000/v1", "reward.model=name"],
    "reward=weighted": ["reward.components={short: length}"],
    "env=gsm8k": ["env.path=problems.jsonl"],
    "env=custom": ["env._target_=my_envs.MyEnv"],
    "algo=distill": ["algo.teacher_model_name_or_path=random:tiny", "model.name=random:tiny"],
    "env=openenv": ["env.url=http://127.0.0.1:8000"],
    "env=verifiers": ["env.id=my_taskset"],
    "task=benchmark": ["tasks=[arc_easy]"],
    "task=collect_preferences": ["out=pairs.jsonl"],
    "task=compare": ["runs=[outputs]"],
    "task=push": ["repo=user/name", "run=outputs"],
    "data=preferences": ["algo=dpo"],
    "data=demonstrations": ["algo=sft"],
    "data=unpaired": ["algo=kto"],
    "callbacks=demonstrations": ["algo=sft"],
    "callbacks=preferences": ["algo=dpo"],
    "callbacks=reward": ["algo=reward"],
    "experiment=chat_lora": ["model.name=random:tiny", "reward.path=x", "data.path=y.txt"],
}
ONLINE = ("ppo", "grpo", "distill", "gspo", "rloo", "reinforce_plus_plus")


@pytest.fixture(autouse=True)
def clean_hydra():
    schemas.register()
    yield
    GlobalHydra.instance().clear()


def composed(*overrides, tmp_path="/tmp"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*overrides, f"paths.output_dir={tmp_path}"])


def module_of(cfg):
    """What ``train.py`` makes of it."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    return get_class(cfg.module)(settings["algo"], settings["model"])


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes_and_resolves(option):
    cfg = composed(option, *NEEDS.get(option, []))
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    ModelConfig.of(settings["model"], settings["algo"]["model_name"], given=False)


@pytest.mark.parametrize(
    ("written", "prompts"),
    [
        ("[hi,ho]", ["hi", "ho"]),
        ("[hi there, ho]", ["hi there", "ho"]),
        ('["Say hello!", "Hm, no."]', ["Say hello!", "Hm, no."]),
        ("['It is 5 o\\'clock.']", ["It is 5 o'clock."]),
        ("[{prompt: hi, answer: 4}]", [{"prompt": "hi", "answer": 4}]),
    ],
)
@pytest.mark.parametrize("env", ["env=text", "env=preference"])
def test_prompts_of_the_command_line_stand_for_the_carried_ones(written, prompts, env):
    data = OmegaConf.to_container(composed(env, f"data.prompts={written}").data, resolve=True)
    assert (data["prompts"], data["path"], data["eval_path"]) == (prompts, None, None)
    data = composed(env, f"data.eval_prompts={written}").data
    assert (data.path, data.eval_path) == ("package:openings_train.txt", None)
    carried = composed(env).data
    assert carried.eval_path == "package:openings_heldout.txt" and carried.eval_size is None


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.split("=")[0] in ("algo", "logger")])
def test_every_part_instantiates(option, tmp_path):
    cfg = composed(option, "model=tiny", *NEEDS.get(option, []), tmp_path=tmp_path)
    module = module_of(cfg)
    assert module.config.seed == cfg.seed
    online = option.split("=")[1] in ONLINE or not option.startswith("algo")
    kinds = {
        "algo=sft": datamodules.DemonstrationDataModule,
        "algo=kto": datamodules.UnpairedPreferenceDataModule,
    }
    offline = kinds.get(option, datamodules.PreferenceDataModule)
    kind = datamodules.RolloutDataModule if online else offline
    assert isinstance(instantiate(cfg.data), kind)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    loggers = [instantiate(logger) for logger in cfg.logger.values()]
    trainer = instantiate(cfg.trainer, precision="32-true", callbacks=callbacks, logger=loggers)
    assert trainer.gradient_clip_val == cfg.algo.max_grad_norm
    if online:
        assert trainer.max_epochs == cfg.algo.num_iterations
        assert trainer.check_val_every_n_epoch == cfg.algo.eval_every
    else:
        assert trainer.max_epochs == cfg.algo.num_epochs
        batches = cfg.algo.eval_every * cfg.algo.gradient_accumulation_steps
        assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (batches, None)
        assert trainer.accumulate_grad_batches == cfg.algo.gradient_accumulation_steps


def test_the_algorithms_settings_arrive_as_a_real_config_and_reach_everyone():
    sizes = ("algo.batch_size=8", "algo.mini_batch_size=2", "algo.ppo_epochs=3")
    cfg = composed(*sizes, "seed=5", "model=tiny")
    config = module_of(cfg).config
    assert isinstance(config, PPOConfig)
    assert (config.batch_size, config.seed, config.model_name) == (8, 5, "random:tiny")
    assert (cfg.data.batch_size, cfg.data.mini_batch_size, cfg.data.epochs) == (8, 2, 3)
    assert cfg.data.seed == 5


def test_the_environment_gets_the_chosen_reward():
    cfg = composed("reward=length", "reward.timeout_s=3", "model=tiny")
    env = instantiate(cfg.data).env
    assert env.keywords["reward_fn"].name == "length_reward"
    assert env.keywords["reward_fn"].timeout_s == 3


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("algo.learning_rat=1e-5", "learning_rat"),
        ("algo.batch_size=many", "batch_size"),
        ("algo.learning_rate=fast", "learning_rate"),
        ("model.lora.rank=8", "rank"),
        ("model.dtypo=float32", "dtypo"),
        ("env.max_lenght=5", "max_lenght"),
        ("env.max_length=long", "max_length"),
        ("data.eval_size=some", "eval_size"),
        ("reward.timeout=3", "timeout"),
        ("trainer.precison=32", "precison"),
        ("nosuchgroup=1", "nosuchgroup"),
        ("algo=ppoo", "ppoo"),
        ("reward=sentimental", "sentimental"),
    ],
)
def test_a_typo_or_a_wrong_type_is_refused_while_composing(override, named):
    with pytest.raises(REFUSED, match=named):
        composed(override)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("algo.kl_estimator=k9", "kl_estimator"),
        ("algo.mini_batch_size=7", "mini_batch_size"),
        ("algo.temperature=0", "temperature"),
        ("model.dtype=float12", "dtype"),
        ("model.quantization=5bit", "quantization"),
        ("model.lora.r=-1", "lora.r"),
        ("model.attn_implementation=fast", "attn_implementation"),
        ("algo.device=gpuu", "device"),
    ],
)
def test_an_impossible_value_is_refused_before_anything_is_loaded(override, named):
    with pytest.raises(REFUSED, match=named):
        module_of(composed(override, "model.name=./no-such-model"))


def test_the_schemas_are_those_of_the_signatures():
    text = derive.PATH.read_text()
    assert text == derive.derive(), "run python -m rlmodules.schemas.derive"


def test_the_schemas_need_nothing_of_what_they_describe():
    tree = ast.walk(ast.parse(derive.PATH.read_text()))
    imported = {node.module for node in tree if isinstance(node, ast.Import | ast.ImportFrom)}
    assert imported == {"copy", "dataclasses", "typing", "omegaconf"}


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (int, "int"),
        (float | None, "float | None"),
        (Sequence[str], "list[str]"),
        (list[float] | None, "list[float] | None"),
        (Sequence[str | int], "list[Any]"),
        (Mapping[str, float] | None, "Any"),
        (Mapping[str, Mapping[str, Any]], "dict[str, Any]"),
        (str | Sequence[str], "Any"),
        (Callable[[str], float] | None, "Any"),
    ],
    ids=str,
)
def test_types_that_a_config_can_check_are_kept(annotation, kind):
    assert derive.config_type(annotation) == kind


def test_what_docstrings_say_of_an_option_is_kept():
    nodes = schemas.nodes.NODES

    def text(group, name, option):
        return nodes[group][name].__dataclass_fields__[option].metadata["help"]

    assert text("algo", "grpo", "learning_rate").startswith(
        "Of the optimizer"
    )  # of a base, by attribute
    assert text("env", "math", "difficulty").startswith("level of generated problems")
    assert text("env", "math", "stop_sequences").startswith("Default: the end of the line")
    assert text("env", "booking", "max_turns").endswith("still executed.")  # of two lines, a base
    assert text("task", "collect_preferences", "max_pairs").endswith("no answer is in two.")


def test_every_field_of_every_config_has_a_reader():
    """No option is accepted and then ignored: its name is read somewhere outside its schema."""
    files = [CONF.parent / "train.py"]
    for folder in ("rlmodules", "datamodules", "conf"):
        paths = (CONF.parent / folder).glob("**/*.*")
        files += [path for path in paths if path.suffix in (".py", ".yaml")]
    text = "\n".join(path.read_text() for path in files)
    algorithm = ("c.", "config.", "algo.")
    readers = {PPOConfig: algorithm, GRPOConfig: algorithm, ModelConfig: ("config.", "value.")}
    for config, owners in readers.items():
        for name in config.__dataclass_fields__:
            assert any(f"{owner}{name}" in text for owner in owners), f"{config.__name__}.{name}"


def test_every_option_says_what_changing_it_does_to_a_run_that_goes_on():
    """A new one is given its place in ``rlmodules/resuming/table.py``."""
    options = {field.path for field in every_field()}
    trainers = [*inspect.signature(L.Trainer.__init__).parameters][1:]
    options |= {f"trainer.{name}" for name in trainers}
    wild = {name.removesuffix(".*") for name in KNOWN if name.endswith(".*")}
    unknown = {name for name in options - KNOWN.keys() if name.split(".")[0] not in wild}
    assert unknown == set()
    beyond = {"data.rows", "data.rows.held_out", "suggested", "processes", "module", "out", "runs"}
    gone = {name for name in KNOWN if not name.endswith(".*")} - options - beyond
    assert gone == set(), "options of the table that there are no longer"
    assert set(Effect) == set(KNOWN.values())

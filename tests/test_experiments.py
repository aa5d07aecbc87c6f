"""An experiment goes with every algorithm and environment, or says which option does not."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

import train
from rlmodules import running, schemas
from rlmodules.schemas.fields import CONF

ALGORITHMS = sorted(path.stem for path in (CONF / "algo").glob("*.yaml"))
ONLINE = ("ppo", "grpo", "distill", "gspo", "rloo", "reinforce_plus_plus")
ENVIRONMENTS = {  # with what the user must give besides
    "booking": [],
    "calculator": [],
    "code": [],
    "custom": ["env._target_=tests.envs.Mine"],
    "gsm8k": ["env.path=problems.jsonl"],
    "math": [],
    "openenv": ["env.url=http://127.0.0.1:8000"],
    "preference": [],
    "reasoning_gym": ["env.task=leg_counting"],
    "text": [],
    "verifiers": ["env.id=my_taskset"],
}
TOLD = {
    "chat_lora": ["model.name=random:tiny", "reward.path=folder", "data.path=prompts.txt"],
    "smoke": [],
}
WHERE = Path("/tmp/rlmodules-experiment")


def checked(*overrides):
    """A run as ``train.py`` composes and checks it."""
    schemas.register()
    try:
        with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
            cfg = compose("train", [*overrides, f"paths.output_dir={WHERE}"])
        schemas.refuse_unknown(cfg, running.TRAINER)
        train.check_groups(cfg)
        schemas.name_objectives(cfg)
        running.check_options(cfg)
        return cfg
    finally:
        GlobalHydra.instance().clear()


def said(*overrides):
    """What refuses a run; None where nothing does."""
    try:
        checked(*overrides)
    except HydraException as error:
        return schemas.explain(error, lambda: running.TRAINER)
    except ValueError as error:
        return str(error)


def test_the_tables_above_name_every_file():
    assert sorted(ENVIRONMENTS) == sorted(
        {p.stem for p in (CONF / "env").glob("*.yaml")} - {"none"}
    )
    assert sorted(TOLD) == sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def test_a_size_is_one_for_each_kind_of_data():
    """``conf/train.yaml`` takes them if they are there: none is missing by mistake."""
    sizes, kinds = ({p.stem for p in (CONF / g).glob("*.yaml")} for g in ("size", "data"))
    found = {path.stem for path in (CONF / "size" / "of").glob("*.yaml")}
    assert found == {f"{size}_{kind}" for size in sizes for kind in kinds}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_smoke_is_two_steps_of_every_algorithm(algo):
    """All that a run does but its files, with what this algorithm learns from by default."""
    taught = ["algo.teacher_model_name_or_path=random:tiny"] if algo == "distill" else []
    cfg = checked(f"algo={algo}", "experiment=smoke", "trainer.precision=32-true", *taught)
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert (cfg.model.name, cfg.data.eval_size) == ("random:tiny", 4)
    module = get_class(cfg.module)(settings["algo"], settings["model"])
    steps = {} if algo in ONLINE else {"max_steps": 2, "val_check_interval": None}
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}
    trainer = instantiate(cfg.trainer, callbacks=[], accelerator="cpu", **steps, **quiet)
    trainer.fit(module, instantiate(cfg.data))
    assert trainer.global_step == (4 if algo in ONLINE else 2)
    assert trainer.max_epochs == (2 if algo in ONLINE else 1)


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize("algo", ["ppo", "grpo"])  # of which the others are settings
def test_smoke_goes_with_every_environment(algo, env):
    cfg = checked(f"algo={algo}", f"env={env}", "experiment=smoke", *ENVIRONMENTS[env])
    assert (cfg.algo.batch_size, cfg.algo.max_new_tokens, cfg.algo.num_iterations) == (16, 8, 2)


@pytest.mark.parametrize(
    ("overrides", "reward"),
    [
        ("", "sentiment"),
        ("experiment=smoke", "length"),
        ("experiment=smoke env=preference", "length"),
        ("experiment=smoke algo=grpo", None),
        ("experiment=smoke algo=grpo env=text", "length"),
        ("experiment=smoke reward=sentiment", "sentiment"),
    ],
)
def test_smoke_rewards_what_random_bytes_can_differ_in_where_a_reward_is_taken(overrides, reward):
    said = checked(*overrides.split()).reward
    assert said["_target_"].rpartition(".")[2] == reward if reward else not said


def test_without_an_environment_smoke_says_so():
    assert "needs an environment: env=text" in said("experiment=smoke", "env=none", "reward=none")


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ("experiment=[smoke]", 16),
        ("size=smoke model=tiny", 16),
        ("experiment=smoke algo.batch_size=24", 24),
        ("algo=dpo experiment=smoke algo.batch_size=3", 3),
        ("algo=dpo experiment=smoke data.path=mine.jsonl", 8),
        ("experiment=smoke data.path=mine.txt", 16),
        ("experiment=smoke env=math", 16),
        ("experiment=smoke reward=length", 16),
    ],
)
def test_what_the_user_says_beside_smoke_is_kept(overrides, size):
    cfg = checked(*overrides.split())
    assert cfg.algo.batch_size == size and cfg.data.eval_size == 4
    assert "mine" not in overrides or cfg.data.path.startswith("mine.")


@pytest.mark.parametrize("experiment", sorted(TOLD.keys() - {"smoke"}))
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_an_experiment_goes_with_an_algorithm_or_names_the_option_that_does_not(algo, experiment):
    refused = said(f"algo={algo}", f"experiment={experiment}", *TOLD[experiment])
    if algo == "ppo":
        assert refused is None
    else:
        assert f"experiment/{experiment}: Key " in refused and "(algo." in refused
        assert "take another experiment or algo" in refused and "Hydra" not in refused

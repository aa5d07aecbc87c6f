"""The suite composes equal choices of groups once, and comes to what Hydra comes to."""

import composed_once
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from reading_helpers import ROOT

from rlmodules import schemas

COMMANDS = [
    ["algo=ppo"],
    ["algo=ppo", "algo.gamma=0.9"],
    ["algo=ppo", "reward=function", "reward.path=a:b"],
    ["algo=grpo", "env=math", "size=smoke", "algo.batch_size=8"],
    ["algo=dpo", "~callbacks.report", "~logger"],
    ["algo=dpo", "+callbacks.stop={_target_: a.b, step: 2}", "hydra.run.dir=here"],
    ["experiment=smoke", "model=tiny", "hydra/launcher=basic", "hydra.mode=RUN"],
]


def composed(overrides, folder=None):
    schemas.register()
    more = [f"hydra.searchpath=[file://{folder}]"] if folder else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*more, *overrides], return_hydra_config=True)
    return OmegaConf.to_container(config)


@pytest.fixture
def by_itself(monkeypatch):
    """As Hydra composes."""

    def call(overrides):
        with monkeypatch.context() as patch:
            patch.setattr(config_loader_impl, "create_defaults_list", composed_once.CREATE)
            patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list",
                          composed_once.MERGE)  # fmt: skip
            return composed(overrides)

    return call


@pytest.mark.parametrize("overrides", COMMANDS, ids=" ".join)
def test_it_is_what_hydra_composes_each_time(overrides, by_itself):
    wanted = by_itself(overrides)
    assert composed(overrides) == wanted
    assert composed([*overrides, "seed=7"]) != wanted
    assert composed(overrides) == wanted


def test_it_is_composed_once(monkeypatch):
    composed(["algo=kto", "size=smoke"])
    monkeypatch.delattr(composed_once, "CREATE")
    assert composed(["algo=kto", "size=smoke", "seed=3"])["seed"] == 3


def test_files_of_a_user_are_read_each_time(tmp_path):
    (tmp_path / "algo").mkdir()
    for rate in (0.25, 0.5):
        (tmp_path / "algo" / "mine.yaml").write_text(
            f"defaults: [ppo, _self_]\nlearning_rate: {rate}\n"
        )
        assert composed(["algo=mine"], tmp_path)["algo"]["learning_rate"] == rate


def test_a_schema_that_is_stored_anew_is_taken(monkeypatch):
    store = ConfigStore.instance()
    for number in (1, 2):
        store.store(name="mine", group="size", node={"seed": number}, package="_global_")
        assert composed(["size=mine"])["seed"] == number
    del store.repo["size"]["mine.yaml"]


def test_a_group_that_is_not_there_is_refused_each_time():
    for _ in range(2):
        with pytest.raises(Exception, match="Could not find 'algo/nope'"):
            composed(["algo=nope"])

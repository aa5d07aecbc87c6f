"""Imports point down only; files and functions stay small; a step is read in a few files."""

import ast
import re
import sys

import pytest
from reading_helpers import (
    PACKAGES,
    ROOT,
    check_reading_list,
    file_of,
    imported_names,
    imports,
    tree_of,
)

D, R = "datamodules", "rlmodules"
TEMPLATES = f"{D}.templates {D}.template_options {D}.kept"
TYPES = f"{D}.checks {D}.types {D}.experience {D}.ends {TEMPLATES} {D}.positions"
BASE = f"{R}.functional {R}.checks {R}.quantization {R}.quiet {TYPES} {D}.atomic"
LEARNERS = f"{BASE} {R}.models {R}.optimizers {R}.sampling"
TEXTS = f"{D}.examples {D}.preferences {D}.demonstrations {D}.unpaired"
DATA = f"{TYPES} {D}.text {D}.rewards {D}.environments {D}.rollouts {TEXTS}"
PARTS = (
    f"{LEARNERS} {R}.algorithms {R}.reward_models {R}.callbacks {R}.resuming {R}.trackers"
    f" {R}.trainer_options {DATA}"
)
MAY_IMPORT = {
    # room: the rooms below it (a room is a folder or a file of a package)
    f"{D}.__init__": "",
    f"{D}.experience": "",
    f"{D}.kept": "",
    f"{D}.templates": f"{D}.kept",
    f"{D}.template_options": "",
    f"{D}.ends": f"{D}.templates",
    f"{D}.positions": "",
    f"{D}.types": f"{D}.experience",
    f"{D}.atomic": "",
    f"{D}.checks": "",
    f"{D}.guard": "",
    f"{D}.seeding": "",
    f"{D}.processes": "",
    f"{D}.sandbox": f"{D}.checks",
    f"{D}.text": f"{TYPES} {D}.atomic",
    f"{D}.mathematics": "",
    f"{D}.rewards": f"{TYPES} {D}.text {D}.guard {D}.mathematics",
    f"{D}.environments": f"{TYPES} {D}.text {D}.rewards {D}.sandbox {D}.guard {D}.seeding",
    f"{D}.rollouts": f"{TYPES} {D}.atomic {D}.text {D}.rewards {D}.environments {D}.guard"
    f" {D}.seeding {D}.processes",
    f"{D}.examples": f"{TYPES} {D}.text {D}.seeding",
    f"{D}.preferences": f"{TYPES} {D}.text {D}.examples",
    f"{D}.unpaired": f"{TYPES} {D}.text {D}.examples {D}.preferences",
    f"{D}.demonstrations": f"{TYPES} {D}.text {D}.examples {D}.preferences",
    f"{R}.__init__": f"{R}.checks",
    f"{R}.checks": "",
    f"{R}.functional": "",
    f"{R}.quantization": "",
    f"{R}.quiet": "",
    f"{R}.views": f"{D}.atomic",
    f"{R}.models": BASE,
    f"{R}.optimizers": f"{R}.checks {D}.checks",
    f"{R}.sampling": f"{BASE} {R}.models",
    f"{R}.engines": f"{BASE} {R}.models {R}.sampling",
    f"{R}.inside_vllm": "",  # it runs in vLLM's environment, which has nothing of ours
    f"{R}.strategies": f"{R}.models {R}.resuming",
    f"{R}.algorithms": f"{LEARNERS} {R}.strategies {R}.callbacks {R}.resuming {R}.trackers {D}.text"
    f" {TEXTS} {D}.processes {D}.seeding",
    f"{R}.reward_models": f"{LEARNERS} {R}.algorithms {DATA}",
    f"{R}.forward_backward": f"{LEARNERS} {D}.seeding",
    f"{R}.resuming": f"{R}.checks {D}.atomic",
    f"{R}.callbacks": f"{R}.functional {R}.checks {R}.resuming {R}.metrics {R}.reports {R}.trackers"
    f" {R}.views {R}.sweeping {D}.atomic {TYPES}",
    f"{R}.schemas": f"{R}.checks {R}.resuming {R}.trackers {D}.environments",
    f"{R}.memory": f"{LEARNERS} {R}.algorithms {R}.reward_models {DATA} {D}.seeding"
    f" {R}.trainer_options",
    f"{R}.facade": PARTS,
    f"{R}.trainers": f"{PARTS} {R}.facade",
    f"{R}.tasks": f"{PARTS} {R}.memory {R}.schemas {R}.views {R}.reports {R}.metrics {R}.trackers"
    f" {D}.seeding",
    f"{R}.sweeping": f"{R}.checks {R}.metrics {R}.reports {R}.resuming {D}.atomic",
    f"{R}.metrics": f"{D}.atomic",
    f"{R}.reports": f"{R}.checks {R}.metrics {R}.views {R}.resuming {D}.atomic",
    f"{R}.trackers": f"{R}.checks {R}.metrics {R}.resuming {R}.sweeping {D}.atomic",
    f"{R}.running": f"{PARTS} {R}.memory {R}.quiet {R}.schemas {R}.tasks {R}.views {R}.reports"
    f" {R}.metrics {R}.trackers {R}.sweeping",
    f"{R}.trainer_options": f"{R}.checks",
    f"{R}.command": "",  # it runs train.py, by its path
}
ALGORITHMS = {
    f"{R}.algorithms.{name}"
    for name in ("ppo", "grpo", "distillation", "dpo", "orpo", "kto", "sft")
}
"""What no file of an algorithm, a reward model or the client imports: another algorithm."""
NEVER_AN_ALGORITHM = {f"{R}.{room}" for room in ("algorithms", "reward_models", "forward_backward")}
COMPOSES = {f"{R}.schemas", f"{R}.tasks", f"{R}.sweeping", f"{R}.running", "train"}
"""Rooms that know Hydra."""

DEEPER = {f"{R}.sweeping": 5}
"""No room is deeper than two folders, but where Hydra wants its plugins, and search has a room."""

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("**/*.py"))
SOURCES = [*FILES, ROOT / "train.py"]
WRITTEN = [path for path in SOURCES if path.name != "nodes.py"]  # that one a command writes
AT_MOST = {"PPO": 6, "GRPO": 8, "DPO": 7}
"""Files that one reads to understand a training step."""


def reading_lists():
    """The files that CONTRIBUTING.md names for a step of each algorithm."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(
        r"^- \*\*(\w+)\*\* \((\d+) files\):((?:\s+`[\w/.]+`,?)+)", text, re.MULTILINE
    )
    return {name: (int(count), re.findall(r"`([\w/.]+)`", files)) for name, count, files in found}


def named(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room_of(module):
    return ".".join(module.split(".")[:2])


def is_inside_the_sandbox(module, name):
    path = f"{module}.{name}" if name and file_of(f"{module}.{name}") else module
    return path.startswith(f"{D}.sandbox.")


def may_use(room, library):
    if room == f"{R}.functional":
        return library in {"torch", R, *sys.stdlib_module_names}
    if library == "torch":
        return room != f"{R}.schemas"
    return library not in ("hydra", "omegaconf") or room in COMPOSES


def violations(path, module):
    """What a file imports that it may not, if it is the source of ``module``."""
    room = room_of(module)
    for _, source, name in imported_names(path):
        if source == module.split(".")[0]:
            yield f"imports {source} as a whole: name the module that defines what you need"
        if is_inside_the_sandbox(source, name) and room != f"{D}.sandbox":
            yield f"imports the sandbox's inside, {source}"
    for found in sorted(imports(path)):
        top, target = found.split(".")[0], room_of(found)
        if top in PACKAGES and room not in ("train", target, top):
            if target not in MAY_IMPORT.get(room, "").split():
                yield f"imports {found}"
            elif found in ALGORITHMS and room in NEVER_AN_ALGORITHM:
                yield f"imports an algorithm, {found}"
        elif found in ALGORITHMS - {module} and room in NEVER_AN_ALGORITHM:
            yield f"imports another algorithm, {found}"
        elif not may_use(room, top):
            yield f"imports {found}"


def functions(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_imports_point_down(path):
    assert list(violations(path, module_of(path))) == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_file_has_its_room(path):
    assert room_of(module_of(path)) in MAY_IMPORT
    assert len(path.relative_to(ROOT).parents) <= DEEPER.get(room_of(module_of(path)), 3)


@pytest.mark.parametrize("path", WRITTEN, ids=named)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 300
    assert [f"{name}: {lines}" for name, lines in functions(path) if lines > 60] == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("**/*.py")), ids=named)
def test_a_test_file_can_be_overseen(path):
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("name", AT_MOST)
def test_a_training_step_is_understood_from_few_files(name):
    count, files = reading_lists()[name]
    assert len(files) == count <= AT_MOST[name]
    check_reading_list(files[0].removesuffix(".py").replace("/", "."), name, files)


# ------------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        (f"{R}.functional.kl", "import numpy", "imports numpy"),
        (f"{R}.functional.kl", "import torch, math\nimport rlmodules.functional.logprobs", None),
        (f"{R}.models.heads", "def f():\n    import hydra", "imports hydra"),
        (f"{R}.schemas", "import torch", "imports torch"),
        (f"{R}.schemas", "import hydra", None),
        (f"{R}.models.heads", f"from {R}.sampling import decoding", f"imports {R}.sampling.deco"),
        (f"{R}.models.heads", f"from {R} import PPO", f"imports {R} as a whole"),
        (f"{R}.models.heads", f"from {R} import PPO", f"imports {R}.algorithms.ppo"),
        (f"{R}.models.heads", f"import {R}", f"imports {R} as a whole"),
        (f"{R}.algorithms.grpo", f"from {R}.algorithms.ppo import PPO", "imports another algo"),
        (f"{R}.algorithms.grpo", f"from {R}.algorithms import dpo", "imports another algorithm"),
        (f"{R}.algorithms.grpo", f"from {R}.algorithms import online", None),
        (f"{R}.reward_models.scalar", f"from {R}.algorithms.dpo import DPO", "imports an algo"),
        (f"{R}.callbacks.report", f"from {R}.algorithms import online", f"imports {R}.algorithms"),
        (f"{R}.trainers", f"from {R}.algorithms.ppo import PPO", None),
        (f"{R}.tasks.evaluate", f"from {D} import RolloutDataModule", None),
        (f"{R}.models.heads", f"from {D} import RolloutDataModule", f"imports {D}.rollouts"),
        (f"{R}.sweeping.launcher", f"from {R}.trainers import PPOTrainer", f"imports {R}.trainers"),
        (f"{D}.types", f"from {R}.checks import require", f"imports {R}.checks"),
        (f"{D}.types", f"from {D} import Prompt", f"imports {D} as a whole"),
        (f"{D}.text.chat", f"import {D}.rewards.answers", f"imports {D}.rewards.answers"),
        (f"{D}.environments.code", f"from {D}.sandbox import Sandbox", None),
        (f"{D}.environments.code", f"from {D}.sandbox import runner", "the sandbox's inside"),
        (f"{D}.environments.code", f"from {D}.sandbox.runner import Sandbox", "the sandbox's ins"),
    ],
)
def test_an_import_that_points_up_is_seen(tmp_path, module, source, said):
    path = tmp_path / "x.py"
    path.write_text(source)
    found = list(violations(path, module))
    assert any(said in line for line in found) if said else found == []


LEARNER = """
from rlmodules.algorithms.base import Base
from rlmodules.functional.losses import loss
from rlmodules.models.parts import Part
class Mine(Base):
    part: Part
    def losses(self, batch): return loss(self.part.score(self.shared(batch)))
"""
SHARED = """
from datamodules.types import Batch
from rlmodules.functional import scale
class Base:
    def training_step(self, batch: Batch): return self.losses(batch)
    def shared(self, batch): return scale(batch)
    def unused(self): return other(batch)
"""
TREE = {
    "rlmodules/algorithms/mine.py": LEARNER,
    "rlmodules/algorithms/base.py": SHARED,
    "rlmodules/functional/losses.py": "def loss(x): return x",
    "rlmodules/models/parts.py": """
from rlmodules.models.scores import Scores
class Part(Scores): ...
""",
    "rlmodules/models/scores.py": "class Scores:\n    def score(self, x): return x",
    "rlmodules/functional/__init__.py": "from rlmodules.functional.scales import scale",
    "rlmodules/functional/scales.py": "def scale(x): return x",
    "datamodules/types.py": "class Batch: ...",
    "datamodules/apart.py": "",
}
STEP = [name for name in TREE if not name.endswith(("__init__.py", "parts.py", "apart.py"))]


@pytest.mark.parametrize("missing", [None, *STEP[1:]])
def test_a_reading_list_misses_nothing_that_a_step_names(tmp_path, missing):
    for name, source in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    listed = [*(name for name in STEP if name != missing), "rlmodules/models/parts.py"]
    if missing is None:
        check_reading_list("rlmodules.algorithms.mine", "Mine", listed, tmp_path)
        listed.append("datamodules/apart.py")
    with pytest.raises(AssertionError, match=r"imports .*apart" if missing is None else missing):
        check_reading_list("rlmodules.algorithms.mine", "Mine", listed, tmp_path)

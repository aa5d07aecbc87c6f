"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the project."""

import re
import shlex
import shutil
import subprocess

import pytest
from process_helpers import warm_python
from reading_helpers import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SMALL = ["model=tiny", "logger=none", "trainer.precision=32-true", "algo.device=cpu"]
QUICK = ["algo.num_iterations=1", "algo.batch_size=8", "algo.mini_batch_size=8", "data.eval_size=2",
         "algo.gradient_accumulation_steps=1", "algo.max_new_tokens=4"]  # fmt: skip
EXTRA = {
    "Write an algorithm": ["env.num_held_out=2"],
    "Write an environment": ["algo.num_generations=4"],
}


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL).group(1)


def commands(title):
    return re.search(r"```\n(.*?)```", section(title), re.DOTALL).group(1).strip().splitlines()


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("rlmodules", "datamodules", "conf", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "train.py", folder)
    return folder


@pytest.mark.parametrize("title", ["Write an algorithm", "Write an environment", "Write a reward"])
def test_a_recipe_works_as_it_stands(project, title):
    *preparations, train = commands(title)
    assert train.startswith("python train.py ")
    given = shlex.split(train)[1:]
    wanted = [*QUICK, *EXTRA.get(title, [])]
    chosen = {word.split("=")[0] for word in given}
    small = [word for word in (*SMALL, *wanted) if word.split("=")[0] not in chosen]
    for command in [*preparations, f"python {shlex.join([*given, *small])}"]:
        line = re.sub(r"^python\b", shlex.quote(warm_python()), command)
        done = subprocess.run(line, shell=True, cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    (report,) = project.glob("outputs/*/*/report.txt")
    assert "reward" in report.read_text()


def test_the_page_is_short_and_shows_whole_files():
    assert len(PAGE.splitlines()) < 250
    links = re.findall(r"\]\((examples/[^)]+|reinforce.yaml|countdown.yaml)\)", PAGE)
    named = {link for link in links if link.startswith("examples/")}
    assert len(named) >= 3 and all((ROOT / name).is_file() for name in named)

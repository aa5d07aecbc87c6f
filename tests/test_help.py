"""``train.py --help``: what it says, of whichever choice, at once, and from anywhere."""

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rlmodules import schemas
from rlmodules.schemas.fields import CONF, commented_fields, comments_behind, every_field
from rlmodules.schemas.help import brief, parts
from rlmodules.schemas.nodes import NODES

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "lightning", "transformers", "matplotlib", "pandas", "ray")
WATCHED = f"""
import atexit, sys
atexit.register(lambda: print("heavy:", [n for n in {HEAVY} if n in sys.modules], file=sys.stderr))
from rlmodules.command import main
main()
"""


def said(*arguments, folder, status=0, **environment):
    """What the installed command prints in ``folder``, with what it imported."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def help_of(*overrides):
    schemas.register()
    console = Console(file=StringIO(), width=110)
    for part in parts("python train.py", overrides):
        console.print(part)
    return console.file.getvalue()


def test_every_option_of_every_schema_is_described():
    untold = [f.path for f in every_field() if f.path.split(".")[0] in NODES and not f.text]
    assert untold == []
    elsewhere = [f.path for f in every_field() if f.text.startswith("see ")]
    assert elsewhere == [], "say it, not where it is said"
    assert [f.path for f in commented_fields() if not f.option and not f.text] == []


def test_help_says_the_options_of_what_was_chosen(tmp_path):
    out, err = said("--help", "algo=dpo", "algo.beta=0.3", folder=tmp_path)
    assert err == "heavy: []\n"
    assert re.search(r"algo\.beta=0\.3 +\(float\) DPO: how strongly the policy is held", out)
    assert re.search(r"algo\.num_epochs=2 +\(int\) Passes over the data", out)  # conf/'s default
    assert re.search(r"algo +distill \*dpo grpo gspo", out) and "*preferences rollouts" in out
    assert re.search(r"ckpt_path=null +a checkpoint, a run's folder", out)
    assert "ppo_epochs" not in out and "env.stop_sequences" not in out
    assert "--cfg job" in out and "Examples" in out
    assert not list(tmp_path.iterdir()), "nothing is run, nothing is made"


@pytest.mark.parametrize("algo", sorted(path.stem for path in CONF.glob("algo/*.yaml")))
def test_help_lists_every_option_of_an_algorithm(algo):
    out = help_of(f"algo={algo}", *(["model=tiny"] if algo == "ppo" else []))
    schema = {"gspo": "grpo", "rloo": "grpo", "reinforce_plus_plus": "grpo", "pairwise": "reward"}
    wanted = {f.path for f in every_field() if f.option == schema.get(algo, algo)}
    shown = set(re.findall(r"^  ([\w.]+)=", out, re.MULTILINE))
    assert {path for path in wanted if path.startswith("algo.")} <= shown
    assert f"*{algo}" in out


def test_help_of_what_has_to_be_given_and_of_a_sweep():
    out = help_of("env=gsm8k", "algo=grpo,ppo", "algo.learning_rate=1,2")
    assert re.search(r"env\.path=\(has to be given\)", out) and "*grpo" in out
    assert re.search(r"algo\.learning_rate=1 ", out)
    assert re.search(r"env\.timeout_s=null +seconds that one", help_of("env=custom", "reward=none"))


def test_help_of_a_sweep_says_what_its_sweeper_is_told():
    out = help_of("hparams_search=optuna", "hydra.sweeper.n_trials=7")
    assert re.search(r"hydra\.sweeper\.n_trials=7 +settings; a setting that comes up again", out)
    assert "hydra/sweeper=search" in out and "*optuna" in out


def test_a_choice_that_there_is_not_is_one_sentence(command):
    assert "there is no algo=dop: did you mean dpo?" in command("--help", "algo=dop", status=1)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--cfg", "job", "algo=dpo"], "learning_rate:"), (["--hydra-help"], "--multirun")],
)
def test_hydras_own_flags_work_from_another_folder(tmp_path, flags, expected):
    out, err = said(*flags, folder=tmp_path)
    assert expected in out and err == "heavy: []\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python train.py algo=dp", "algo=dpo"),
        ("python train.py algo=dpo algo.bet", "algo.beta="),
        ("python train.py algo=gspo algo.num_gen", "algo.num_generations="),
    ],
)
def test_tab_completes_options_of_what_was_chosen(tmp_path, line, expected):
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    out, err = said("--shell-completion", "query=bash", folder=tmp_path, **asked)
    assert out.split() == [expected] and err == "heavy: []\n"


def test_comments_behind_options_are_found_by_path():
    text = "a: 1  # of a\nb:\n  # above\n  a: '#x'\n  c: 2  # of c,\n         # all of it\n  d: 3\n"
    assert comments_behind(text) == {"a": "of a", "b.c": "of c, all of it"}


def test_a_long_description_is_cut_between_sentences():
    assert brief("One. Two.") == "One. Two."
    assert brief("A first one of some length. " + "And more. " * 30).endswith("And more.")
    assert len(brief("A first one of some length. " + "And more. " * 30)) < 150

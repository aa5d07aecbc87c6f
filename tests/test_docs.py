"""The pages' commands are marked, and the checker that runs them tells a good page from a bad."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def checker():
    spec = importlib.util.spec_from_file_location("docs_check", ROOT / "docs" / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(folder, *blocks):
    """A page of marks and commands."""
    parts = [f"{mark}\n```sh\n{commands}\n```\n" for mark, commands in blocks]
    path = folder / "page.md"
    path.write_text("# Title\n\nWords.\n\n" + "\n".join(parts))
    return path


RUN, SERVE, COMPOSE = "<!-- check: run -->", "<!-- check: serve -->", "<!-- check: compose -->"


def test_every_block_of_every_page_says_what_becomes_of_it(checker):
    for path in PAGES:
        found = list(checker.blocks(path))
        fences = re.findall(r"^```(\w*)$", path.read_text(), re.MULTILINE)
        assert len(found) == sum(map(fences.count, ("sh", "bash", "shell", "python")))


def test_a_good_page_is_well_and_its_commands_share_a_folder(checker, tmp_path, capfd):
    path = page(tmp_path, (RUN, "echo one > kept # quoted '#'"), (RUN, "grep -q one kept\ntrue"))
    assert checker.main([str(path)]) == 0
    said = capfd.readouterr().out
    assert "page.md:7 run: ok" in said and "page.md:12 run: ok" in said and "all well" in said
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ("echo before\nfalse\necho after", "before"),
        ("true | false", ""),
        ("echo $NEVER_SET_BEFORE", "unbound"),
        ("python -c 'import sys; sys.exit(\"a reason\")'", "a reason"),
        ("a-command-that-there-is-not", "not found"),
    ],
)
def test_a_command_that_fails_fails_its_page(checker, tmp_path, capfd, commands, said):
    assert checker.main([str(page(tmp_path, (RUN, commands)))]) == 1
    output = capfd.readouterr().out
    assert "page.md:7 fails:" in output and said in output
    assert "\nafter\n" not in output.partition("\n\n")[2].replace(commands, "")


@pytest.mark.parametrize("mark", ["", "<!-- check: rum -->", "<!-- checked: run -->", "words"])
def test_a_block_that_says_nothing_is_refused(checker, tmp_path, mark):
    with pytest.raises(ValueError, match=r"page.md:\d+: say before this block"):
        list(checker.blocks(page(tmp_path, (mark, "true"))))


def test_marks_are_read(checker, tmp_path):
    marks = [
        "<!-- check: run with a=1 'b=[2, 3]' -->",
        "<!-- check: compose (needs a hub) -->",
        "<!-- check: leave out (needs root) -->",
    ]
    found = list(checker.blocks(page(tmp_path, *((mark, "true") for mark in marks))))
    assert [(b.kind, b.more) for b in found] == [
        ("run", "a=1 'b=[2, 3]'"),
        ("compose", ""),
        ("leave out", ""),
    ]
    assert checker.check(page(tmp_path, (marks[2], "false"))) == []


@pytest.fixture
def called(checker, monkeypatch, tmp_path):
    """Runs a block with a train.py that notes what it is called with."""
    (tmp_path / "root" / "examples").mkdir(parents=True)
    fake = tmp_path / "root" / "train.py"
    fake.write_text(f"import sys\nopen({str(tmp_path / 'calls')!r}, 'a').write(repr(sys.argv[1:]))")
    monkeypatch.setattr(checker, "ROOT", tmp_path / "root")

    def call(mark, commands):
        (tmp_path / "calls").write_text("")
        assert checker.check(page(tmp_path, (mark, commands))) == []
        return (tmp_path / "calls").read_text().replace("][", "]\n[").splitlines()

    return call


def test_sizes_are_cut_by_what_the_mark_adds(called):
    added = "<!-- check: run with small=1 'list=[1, 2]' -->"
    said = called(
        added, "python train.py -m \\\n  a=1,2 # a sweep\nmake train ARGS=\"c=3 d='4 5'\""
    )
    assert said == [
        "['-m', 'a=1,2', 'small=1', 'list=[1, 2]']",
        "['algo=ppo', 'c=3', 'd=4 5', 'small=1', 'list=[1, 2]']",
    ]
    assert called(RUN, "python train.py 'x=[a b]'; python -c 'pass'") == ["['x=[a b]']"]
    assert called(added, "for seed in 0 1; do rlmodules-train seed=$seed; done")[1].startswith(
        "['seed=1', 'small=1'"
    )


def test_what_needs_more_than_there_is_is_composed(called):
    commands = "pip install nothing-like-it\npython train.py a=1\npython train.py -m b=1,2 # c"
    assert called(COMPOSE, commands) == ["['a=1', '--cfg', 'job']", "['-m', 'b=1,2', '--help']"]
    assert called(COMPOSE, "python train.py --cfg hydra") == ["['--cfg', 'hydra']"]


def python_page(folder, mark, code):
    path = folder / "page.md"
    path.write_text(f"{mark}\n```python\n{code}\n```\n")
    return path


def test_python_runs_with_the_arguments_that_its_mark_gives(checker, tmp_path):
    code = "def size(of, n):\n    open(of, 'w').write(str(n))\n\nsize(of=\"large\", n=10)"
    kept = tmp_path / "small"
    assert (
        checker.check(python_page(tmp_path, f'<!-- check: run with of="{kept}" n=2 -->', code))
        == []
    )
    assert kept.read_text() == "2"
    (failure,) = checker.check(python_page(tmp_path, RUN, "raise SystemExit('a reason')"))
    assert "a reason" in failure


@pytest.mark.parametrize(
    ("mark", "said"),
    [("<!-- check: run with k=2 -->", "there is no k="), (COMPOSE, "Python is run")],
)
def test_python_that_cannot_be_cut_so_is_refused(checker, tmp_path, mark, said):
    with pytest.raises(ValueError, match=said):
        list(map(checker.script, checker.blocks(python_page(tmp_path, mark, "n = 10"))))


def test_a_variable_cuts_what_all_runs_are(called, monkeypatch):
    monkeypatch.setenv("DOCS_CHECK_WITH", "algo.device=cpu 'a=[1, 2]'")
    assert called(RUN, "python train.py b=1") == ["['b=1', 'algo.device=cpu', 'a=[1, 2]']"]


def test_what_serves_has_to_stay(checker, tmp_path, monkeypatch):
    monkeypatch.setattr(checker, "SERVES_S", 1)
    assert checker.check(page(tmp_path, (SERVE, "sleep 60"))) == []
    (failure,) = checker.check(page(tmp_path, (SERVE, "echo no port; false")))
    assert "no port" in failure


def test_make_train_is_what_the_checker_takes_it_for():
    recipe = (ROOT / "Makefile").read_text().partition("\ntrain: install\n")[2].splitlines()[0]
    assert recipe.strip() == "$(BIN)/python train.py algo=ppo $(ARGS)"

"""What continuous integration installs first, and what a test run says of what it skipped."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / ".ci" / "run"


def called(tmp_path, **commands):
    """What ``.ci/run`` calls and says where these commands alone are to be found."""
    (tmp_path / "bin").mkdir()
    (tmp_path / ".ci").mkdir()
    shutil.copy(RUN, tmp_path / ".ci" / "run")
    for name, body in ({"make": "", "dirname": f"{shutil.which('dirname')} $1"} | commands).items():
        note = "" if name in ("dirname", "id") else f'echo "{name} $*"\n'
        path = tmp_path / "bin" / name
        path.write_text(f"#!{shutil.which('bash')}\n{note}{body}\n")
        path.chmod(0o755)
    done = subprocess.run([shutil.which("bash"), tmp_path / ".ci" / "run"], text=True,
                          env={"PATH": str(tmp_path / "bin")}, capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SKIPPED = "bubblewrap could not be installed (%s): its tests will be skipped"
SUITE = ["make lint", "make docs", "make test"]


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ({"bwrap": ""}, []),
        ({"id": "echo 0", "apt-get": ""}, ["apt-get update -qq"]),
        ({"id": "echo 1000", "apt-get": ""}, [SKIPPED % "only root may"]),
        ({"id": "echo 0"}, [SKIPPED % "there is no apt-get"]),
        ({"id": "echo 0", "apt-get": "exit 1"}, ["apt-get update -qq", SKIPPED % "apt-get failed"]),
    ],
)
def test_what_the_tests_need_is_installed_where_that_can_be(tmp_path, commands, said):
    assert called(tmp_path, **commands) == [*said, *SUITE]


def test_what_is_installed_is_bubblewrap(tmp_path):
    log = tmp_path / "log"
    called(tmp_path, **{"id": "echo 0", "apt-get": f'echo "$*" >> {log}'})
    assert log.read_text().splitlines() == ["update -qq", "install -y -qq bubblewrap"]


def test_a_run_says_what_it_skipped_and_why(pytester_like):
    said = pytester_like(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(52))\n"
        "def test_one(n):\n    pytest.skip('bwrap is not installed')\n"
        "def test_two():\n    pytest.importorskip('no_such_package')\n"
        "def test_three():\n    assert False\n"
    )
    assert "SKIPPED [52]" in said and "bwrap is not installed" in said
    assert "no_such_package" in said and "FAILED" in said


@pytest.fixture
def pytester_like(tmp_path):
    """The summary of a file of tests, with this project's own settings."""

    def run(text):
        shutil.copy(RUN.parent.parent / "pyproject.toml", tmp_path)
        (tmp_path / "tests").mkdir()
        (tmp_path / "tests" / "test_it.py").write_text(text)
        command = [os.sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    return run

"""Which options are compared by what their files hold."""

from rlmodules.resuming.contents import with_contents


def test_hydras_own_words_are_no_names_of_files(tmp_path, monkeypatch):
    """A sweep's folder that is called ``all`` changed ``_convert_: all`` of every job."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all").mkdir()
    told = {"env._convert_": "all", "env._target_": "all", "env.path": "all"}
    found = with_contents(told)
    assert found["env._convert_"] == found["env._target_"] == "all"
    assert found["env.path"]["shown"] == "all"

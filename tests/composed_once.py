"""What Hydra composes of the project's own files is composed once for equal choices of groups.

A tenth of the suite was walking the defaults of two dozen files and merging them, for each command
anew. Which files those are depends on the chosen groups alone; values come later, onto a copy.
"""

import copy
from collections import OrderedDict
from dataclasses import replace

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import Overrides
from hydra.core.config_store import ConfigStore
from reading_helpers import ROOT

PLACES = ("pkg://hydra.conf", f"file://{ROOT / 'conf'}", "structured://")
MOST = 64
CREATE = config_loader_impl.create_defaults_list
MERGE = ConfigLoaderImpl._compose_config_from_defaults_list
_known = OrderedDict()


def compose_once(monkeypatch):
    """Have Hydra do so."""

    def create_once(repo, config_name, overrides_list, **how):
        places = tuple(f"{source.scheme()}://{source.path.partition('://')[2] or source.path}"
                       for source in repo.get_sources())  # fmt: skip
        if places != PLACES:
            return CREATE(repo, config_name, overrides_list, **how)
        groups = [one for one in overrides_list if repo.group_exists(one.key_or_group)]
        lines = tuple(one.input_line for one in groups)
        key = config_name, *how.items(), lines, names(ConfigStore.instance().repo)
        if key not in _known:
            _known[key] = CREATE(repo, config_name, groups, **how), []
            while len(_known) > MOST:
                _known.popitem(last=False)
        values = Overrides(repo, overrides_list).config_overrides
        return replace(_known[key][0], config_overrides=values)

    def merge_once(loader, defaults, repo):
        merged = next((m for known, m in _known.values() if known.defaults is defaults), [])
        if not merged:
            merged.append(MERGE(loader, defaults, repo))
        return copy.deepcopy(merged[0])

    monkeypatch.setattr(config_loader_impl, "create_defaults_list", create_once)
    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)


def names(stored):
    """What is in the store of schemas, and which of each: tests store others."""
    return tuple((n, names(x) if isinstance(x, dict) else id(x.node)) for n, x in stored.items())

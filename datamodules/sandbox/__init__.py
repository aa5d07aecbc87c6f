"""Programs that a model wrote, run against tests without harm to anything else.

Ours, because no kept library runs untrusted code without a container engine or root, keeps the
tests' values out of the answer's process, and refuses where a machine offers no isolation.
"""

from datamodules.sandbox.backends import PACKAGES, missing_packages
from datamodules.sandbox.runner import (
    MEMORY_MB,
    TIME_LIMIT_S,
    Outcome,
    Report,
    Sandbox,
    sandbox_version,
)

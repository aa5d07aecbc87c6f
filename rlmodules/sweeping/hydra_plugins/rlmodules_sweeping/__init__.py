"""What Hydra discovers: launcher and sweepers.

It takes classes that are defined below ``hydra_plugins`` alone; and that folder itself must have no
``__init__.py``, or it hides other plugins.
"""

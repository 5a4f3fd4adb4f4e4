"""The only room where undocumented parts of dependencies are touched.

A new release of a dependency may break what stands here, and nothing else. Each function names
the release in which its touch was read, and has a test of the same name in
``tests/test_private.py``. Nothing is touched when the package is imported: what could be missing
is looked up by the function that needs it. ``docs/upstream.md`` says what would make them
unnecessary.
"""

from __future__ import annotations

# ---- torchrl: losses


# ---- torchrl: distributions


# ---- torchrl: trainers


# ---- torchrl: checkpoints


# ---- torchrl: collectors


# ---- torchrl: storages and loggers


# ---- torchrl: environments


# ---- torch


# ---- mujoco and dm_control


# ---- hydra


# ---- the standard library

"""Plumbing and measurement: what the lectures stand on, and need not be read with them."""

import os

# Threads of OpenMP that wait for work would spin, and on a busy machine take the processor from
# those that have some.  It is decided here because it must be decided before torch is loaded: so
# our own imports stand above those of other people (pyproject.toml tells ruff).
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

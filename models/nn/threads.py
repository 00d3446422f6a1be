"""How many threads torch computes with."""

from __future__ import annotations

import torch

from carousel.models.cores import usable_cores


def limit_threads() -> None:
    """Compute with no more threads than this process has cores: torch knows of no control group's quota.

    Fewer, by OMP_NUM_THREADS say, stay as they are.
    """
    if torch.get_num_threads() > (cores := usable_cores()):
        torch.set_num_threads(cores)

"""The sections that every recipe has: each key with its type, range, default and meaning.

A task's own sections stand beside what reads them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from carousel.models.strict import Count, CountOrNone, NotNegative, Positive, Probability, Strict


class Run(Strict):
    """How the run is carried out."""

    task: str = "language"
    """What is learnt; decides which other sections a recipe has (training/task)."""
    seed: CountOrNone = 1
    device: Literal["cpu", "cuda"] = "cpu"
    threads: CountOrNone = 0
    """CPU threads; 0 leaves the choice to torch. Bit-for-bit resumption needs the same number."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 multiplies matrices in bfloat16 (autocast); parameters, averages and the loss stay float32."""
    save_every_windows: Count = 100
    log_gradients_every: CountOrNone = 0
    """Updates between two looks at how far back errors reach (training/gradients), for TensorBoard; 0 is never."""


class Optimizer(Strict):
    """How a gradient becomes an update."""

    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 2e-3
    betas: Annotated[tuple[Probability, Probability], Field(strict=False)] = (0.9, 0.99)
    """AdamW only."""
    weight_decay: NotNegative = 0.0
    """On matrices; biases are left alone."""
    clip_norm: NotNegative = 0.5
    """Largest L2 norm of the whole gradient; 0 is no limit."""
    clip_value: NotNegative = 0.0
    """Largest magnitude of one gradient entry, applied before clip_norm; 0 is no limit."""


class Schedule(Strict):
    """How long, and the learning rate on the way."""

    epochs: Count = 20
    shape: Literal["cosine", "constant"] = "cosine"
    warmup_steps: CountOrNone = 0
    final_learning_rate: NotNegative = 1e-5
    """Where the cosine ends."""


class Averaging(Strict):
    """Which mean of the weights is validated and exported."""

    kind: Literal["none", "ema", "nt-asgd"] = "none"
    decay: Probability = 0.998
    """ema only: the share of the past in each step's average."""
    patience: Count = 5
    """nt-asgd only: averaging starts once the figure is worse than the best of those this many validations ago."""


class Stopping(Strict):
    """When to give up before the last epoch."""

    patience: CountOrNone = 0
    """Validations without a new best after which the run ends; 0 is never."""


class Recipe(Strict):
    """One experiment; a task adds sections of its own."""

    name: str = Field(exclude=True)
    """The recipe file's name without its suffix."""
    run: Run = Run()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    averaging: Averaging = Averaging()
    stopping: Stopping = Stopping()

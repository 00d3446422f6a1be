"""Sessions of onnxruntime. With device.py the only module that knows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from carousel.models.cores import usable_cores
from carousel.service.engine.device import Device
from carousel.service.engine.parameters import Array

Session = onnxruntime.InferenceSession
Binding = onnxruntime.IOBinding

SOFTMAX_GRAPH = Path(__file__).with_name("softmax.onnx")
"""One Softmax node of opset 17, from `logits` to `probabilities`, both float32[rows, size]: no weights."""

CPU_PROVIDER = "CPUExecutionProvider"

Weights = Mapping[str, Array]
"""Initializers that a graph shares with others, by name. Not to be written to."""

NO_WEIGHTS: Weights = {}


class RunnerBroken(Exception):
    """The runner cannot be made, or fails on rows of zeros too: it will not recover."""


def _shrinking() -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


SHRINKING = _shrinking()
"""For a run after which a session on the CPU gives back what larger ones have left in its arena."""


def reason_against(device: Device) -> str | None:
    """Why nothing can run on a device; None if something can. To be asked before anything is to."""
    if device.missing is not None:
        return device.missing
    if device.memory == "cuda":
        onnxruntime.preload_dlls()  # CUDA and cuDNN, where they were installed as Python packages
    try:
        open_session(SOFTMAX_GRAPH.read_bytes(), "softmax", 1, device, whole=False)
    except RunnerBroken as error:
        return str(error)
    return None


def open_session(
    graph: bytes,
    name: str,
    intra_op_threads: int,
    device: Device | None = None,
    *,
    whole: bool = True,
    arena: bool = True,
    weights: Weights = NO_WEIGHTS,
) -> onnxruntime.InferenceSession:
    """A session of a graph that is called `name` in messages.

    Args:
        arena: keep what a run has allocated for the next one. For calls that are all of other sizes it keeps the most
            that was ever needed, for no speed.
        weights: initializers of the graph that lie outside of it, all of them. On the CPU they are used where they
            lie, so sessions that are given the same arrays have them once.
        whole: on a device, refuse a graph of which onnxruntime would leave a part to the CPU, and copy what that part
            reads and writes at every run. Whether there are kernels for a graph, onnxruntime alone can tell.

    Raises:
        RunnerBroken: it cannot be made.
    """
    provider = CPU_PROVIDER if device is None else device.provider
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads or usable_cores()  # onnxruntime counts all that the machine has
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 4 if provider != CPU_PROVIDER else 3  # what fails is told below, once
    # Threads that spin while they wait for work take a core from the event loop, which has the last step's tokens to
    # send. And a thread that gets its core late should find little left to do, instead of all others waiting for it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.dynamic_block_base", "4")
    if provider != CPU_PROVIDER and whole:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
    if held:
        options.add_external_initializers(list(held), list(held.values()))  # what the graph says they are
    if provider == CPU_PROVIDER:
        for tensor, value in held.items():
            options.add_initializer(tensor, value)  # and that they are not to be copied
    choice = (provider, {} if device is None else dict(device.options))
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=[choice], enable_fallback=0)
    except Exception as error:  # onnxruntime has no root error of its own
        raise RunnerBroken(f"onnxruntime cannot load the {name} graph ({error})") from None
    if provider not in session.get_providers():
        # onnxruntime tells the reason nobody but its own log, and goes on without.
        raise RunnerBroken(f"onnxruntime cannot set up {provider} on this machine and has written why to stderr")
    # It would keep the graph's bytes for another go with other providers, in case this one had failed.
    session._model_bytes = None
    session.held_weights = held  # it knows their addresses alone
    return session

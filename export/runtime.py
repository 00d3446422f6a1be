"""A graph in onnxruntime, as this room runs it: on the CPU, and out of the way of whatever else the machine does."""

from __future__ import annotations

import onnxruntime

from carousel.models.cores import usable_cores


def open_session(graph: bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """Load a graph; threads 0 is one for each core that this process may use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 4  # an error is raised, too; what it warns of are the habits of others' exporters
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # not while others want the core
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

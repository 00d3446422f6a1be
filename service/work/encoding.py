"""Ports of an encoder: each takes its whole input."""

from __future__ import annotations

from collections.abc import Mapping

from carousel.models.graph import TensorSpec
from carousel.service.engine.encoder.encoding import EncoderStopped, Encoding, EncodingFailed
from carousel.service.engine.encoder.together import Ragged, is_timed
from carousel.service.engine.parameters import Array
from carousel.service.engine.states.pool import StateSpec
from carousel.service.errors import RequestError, ServiceError, Unavailable
from carousel.service.keys.caller import current_caller
from carousel.service.served.repository import ServedModel
from carousel.service.work.rows import Rows, array_of, encoder_ports


async def encode(model: ServedModel, inputs: Mapping[str, Rows], *, batch: bool) -> Encoding:
    """What an encoder makes of whole inputs, alone or with those of others.

    Args:
        model: one that has an encoder.
        inputs: by port, a row for each place of its time axis, or the row of a port without one.
        batch: whether it waits for as long as any waits that is not.

    Raises:
        ServiceError: invalid_request, step_failed or model_unavailable.
    """
    encoder, ports = model.encoder, encoder_ports(model)
    assert encoder is not None
    together = encoder.together
    assert isinstance(together, Ragged), "who takes images has no such ports"

    def prepare() -> Mapping[str, Array]:
        try:
            return together.take({name: _whole(ports[name], rows) for name, rows in inputs.items()})
        except ValueError as error:
            raise RequestError("invalid_request", f"inputs: {error}") from None

    try:
        encoding = await encoder.encode(prepare, batch=batch)
    except EncoderStopped as error:
        raise Unavailable("model_unavailable", f"{model.name}: {error}", 1) from None
    except EncodingFailed as error:
        raise ServiceError("step_failed", f"{model.name} failed on this input: {error}") from None
    current_caller().spend(max(len(rows) if is_timed(ports[name]) else 1 for name, rows in inputs.items()))
    return encoding


def _whole(port: TensorSpec, rows: Rows) -> Array:
    if is_timed(port):
        return array_of(port.name, rows, StateSpec(tuple(size or 0 for size in port.shape[2:]), port.dtype))
    row: Array = array_of(port.name, [rows], StateSpec(tuple(size or 0 for size in port.shape[1:]), port.dtype))[0]
    return row

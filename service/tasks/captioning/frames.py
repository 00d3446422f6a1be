"""What a caption's events have besides those of other streams: where the model looked."""

from __future__ import annotations

import json

import numpy as np

from carousel.service.api.wire import frames
from carousel.service.engine.parameters import Floats
from carousel.service.tasks.captioning.captions import CaptionToken


def token_json(token: CaptionToken) -> str:
    """The `token` event."""
    if token.attention is None:
        return frames.token_json(token)
    looked = json.dumps(attention_map(token.attention), separators=(",", ":"))
    return frames.token_json(token, f',"attention":{looked}')


def attention_map(looked: Floats) -> list[list[float]]:
    """Where a model looked, as clients are told <float32>[rows, columns]: a share needs no more than five digits."""
    rounded: list[list[float]] = np.round(looked.astype(np.float64), 5).tolist()
    return rounded

"""The way past the queue: a sink gets tokens only while the reader waits, and in order with what is queued."""

from __future__ import annotations

import asyncio

import pytest

from carousel.service.engine.parameters import FinishReason
from carousel.service.engine.port import Ended, Told
from carousel.service.engine.streams.token_stream import TokenStream

END = Ended(FinishReason.LENGTH)


def event(token):
    return Told(token, -0.5)


async def parked(stream):
    """A reader that waits in `get`."""
    reader = asyncio.create_task(stream.get())
    await asyncio.sleep(0)
    return reader


async def test_sink_takes_tokens_while_the_reader_waits_and_the_last_one_is_queued():
    taken = []
    stream = TokenStream(0, lambda: None, lambda event: taken.append(event.token) or True)
    stream.put_token(event(1), last=False)  # nobody waits yet
    assert (await stream.get()).token == 1
    reader = await parked(stream)
    stream.put_token(event(2), last=False)
    stream.put_token(event(3), last=False)
    stream.put_token(event(4), last=True)
    stream.put(END)
    assert taken == [2, 3]
    assert (await reader).token == 4
    assert stream.ended_with is END


async def test_what_the_sink_cannot_take_stays_in_order_until_the_reader_waits_again():
    order, open_ = [], True

    def sink(event):
        if open_:
            order.append(event.token)
        return open_

    stream = TokenStream(0, lambda: None, sink)
    reader = await parked(stream)
    open_ = False
    stream.put_token(event(1), last=False)
    open_ = True
    stream.put_token(event(2), last=False)  # the reader has been woken for 1 and has not run: 2 must not overtake it
    order.append((await reader).token)
    order.append((await stream.get()).token)
    reader = await parked(stream)
    stream.put_token(event(3), last=False)
    assert order == [1, 2, 3]
    reader.cancel()


async def test_what_a_sink_raises_is_the_readers_and_nobody_elses():
    class Panic(BaseException):
        pass

    def sink(_):
        raise Panic("no text")

    stream = TokenStream(0, lambda: None, sink)
    reader = await parked(stream)
    stream.put_token(event(1), last=False)
    stream.put_token(event(2), last=False)
    with pytest.raises(Panic):
        await reader
    with pytest.raises(Panic):
        await stream.get()


async def test_sink_that_stays_shut_is_a_slow_reader():
    overflowed = []
    stream = TokenStream(0, lambda: overflowed.append(True), lambda _: False, max_events=3)
    for token in range(5):
        stream.put_token(event(token), last=False)
    assert overflowed == [True]
    assert (await stream.get()).reason is FinishReason.SLOW_READER

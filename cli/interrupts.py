"""Ctrl-C: it interrupts at once, and the one line it leaves tells what became of the work."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_received: list[int] = []
_tellers: list[Callable[[], str]] = []


AGAIN_S = 0.02
"""How soon an interrupt comes again that Python dropped."""


def listen() -> None:
    """Let Ctrl-C raise KeyboardInterrupt wherever it is: an event loop would wait for a step."""
    signal.signal(signal.SIGINT, _receive)
    signal.signal(signal.SIGALRM, _receive)
    sys.unraisablehook = _come_again


def ignore() -> None:
    """Let no further Ctrl-C disturb the end of a process that listens."""
    if signal.getsignal(signal.SIGINT) is _receive:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def received() -> bool:
    """Whether there was a Ctrl-C; some libraries turn it into errors of their own."""
    return bool(_received)


@contextmanager
def told(tell: Callable[[], str]) -> Iterator[None]:
    """What the last line says where the block is interrupted, by whatever exception."""
    _tellers.append(tell)
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        if not received():
            _tellers.remove(tell)
        raise
    _tellers.remove(tell)


def last_words() -> str:
    """What the innermost interrupted block tells; empty where none does."""
    words = _tellers[-1]() if _tellers else ""
    _tellers.clear()
    return words


def _come_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Where a finalizer was interrupted, Python prints the interrupt and drops it."""
    if dropped.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
    else:
        sys.__unraisablehook__(dropped)


def _receive(number: int, _: FrameType | None) -> None:
    _received.append(number)
    # Libraries log what the interrupt breaks; the one line at the end tells what became of it.
    logging.disable(logging.CRITICAL)
    raise KeyboardInterrupt

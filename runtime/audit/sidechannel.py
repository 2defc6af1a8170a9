"""The side channel: how long ``send`` and ``receive`` take, over secret keys and over pictures.

    each call ─┬─ a key, fixed or fresh ──────┬─ send, receive ── times ── dudect's test, of four pairs of classes
               └─ a picture, fixed or another ┘  (engine on the CPU, one thread)

Both are drawn by coins of their own, so that one run of calls serves both tests. Before each call the key is exchanged in the
transmitter and the receiver, with all that is made of it, in the same way for a key that was there before; then the picture is
sent and received once without a clock, so that nothing is new at the second time. What is timed is the product: pictures in,
frames out, and back. A machine that others use makes times noisy, and no difference between the classes; it takes more calls to
see one. Fewer than 100,000 say "open".

Without a defence there is no secret. There the test is tried on a comparison that leaks: its positive control.
"""

import gc
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.attacks.timing import Leak, leaky_equal, times_differ
from semseal.runtime.audit.results import GameResult
from semseal.runtime.audit.scene import Images, Scene
from semseal.runtime.defense.defenses import Defense
from semseal.runtime.defense.keys import KEY_SIZE, generate_key
from semseal.runtime.link import Receiver, Transmitter

COMPARISONS = 20  # in one timed call of the control; a single one takes less than a clock resolves


def play(scene: Scene, defense: Defense, advance: Callable[[int], None]) -> tuple[GameResult, ...]:
    """Without a defence the control, else four games: send and receive, over keys and over pictures."""
    calls, rng = scene.settings.timed_calls, np.random.default_rng([scene.settings.seed, 120])
    if defense.name == "none":
        return (_control(calls, rng),)
    told = scene.main_snr if scene.bundle.has_scale else None
    ends = (
        Sender(scene.bundle.path, generate_key(), defense.name, scene.engine, scene.precision, 1, snr_db=told),
        Taker(scene.bundle.path, generate_key(), scene.engine, scene.precision, 1),
    )
    fresh_key, other_picture = (rng.permutation(np.arange(calls) % 2 == 1) for _ in range(2))
    seconds = _timed(ends, scene.images, fresh_key, other_picture, rng, advance)
    results = []
    for name, times in zip(("send", "receive"), seconds, strict=True):
        for secret, is_random in (("keys", fresh_key), ("pictures", other_picture)):
            results.append(_result(f"{name}, {secret}", times_differ(times, is_random)))
    return tuple(results)


class Sender(Transmitter):
    """The product's, under another key before each call."""

    def change_key(self, key: bytes) -> None:
        """As if it had just been opened with this key, but for the engine and the counters, which go on."""
        self._use_key(key)


class Taker(Receiver):
    """The same of the other end."""

    def change_key(self, key: bytes) -> None:
        """As if it had just been opened with this key, but for the engine."""
        self._use_key(key)


def _timed(
    ends: tuple[Sender, Taker],
    images: Images,
    fresh_key: NDArray[np.bool_],
    other_picture: NDArray[np.bool_],
    rng: np.random.Generator,
    advance: Callable[[int], None],
) -> NDArray[np.float64]:
    """Seconds of send and of receive [2, calls]."""
    transmitter, receiver = ends
    fixed, buffer = generate_key(), images[:1].copy()  # the same memory for every picture
    chosen = np.where(other_picture, rng.integers(1, len(images), size=len(other_picture)), 0)
    seconds = np.empty((2, len(chosen)))
    gc.collect()
    gc.disable()
    try:
        for i, (is_fresh, picture) in enumerate(zip(fresh_key, chosen, strict=True)):
            key = generate_key() if is_fresh else bytes(bytearray(fixed))
            transmitter.change_key(key)
            receiver.change_key(key)
            buffer[:] = images[picture]
            receiver.receive(transmitter.send(buffer))
            start = time.perf_counter_ns()
            frames = transmitter.send(buffer)
            sent = time.perf_counter_ns()
            receiver.receive(frames)
            seconds[:, i] = (sent - start) / 1e9, (time.perf_counter_ns() - sent) / 1e9
            advance(1)
    finally:
        gc.enable()
    return seconds


def _control(calls: int, rng: np.random.Generator) -> GameResult:
    """The leaky comparison of a key with the right one, or with a random one."""
    right = generate_key()
    is_random = rng.permutation(np.arange(calls) % 2 == 1)
    guesses = [rng.bytes(KEY_SIZE) if random else bytes(bytearray(right)) for random in is_random]
    seconds = np.empty(calls)
    for i, guess in enumerate(guesses):
        start = time.perf_counter_ns()
        for _ in range(COMPARISONS):
            leaky_equal(right, guess)
        seconds[i] = (time.perf_counter_ns() - start) / 1e9
    return _result("leaky comparison", times_differ(seconds, is_random))


def _result(name: str, leak: Leak) -> GameResult:
    note = f"{leak.tests} tests of {leak.calls} calls; a difference of {1e6 * leak.resolution_s:.3g} µs would have shown"
    return GameResult(name, leak.t, max(0.0, leak.t - 1.96), leak.t + 1.96, leak.calls, 0.0, "t", None, note)

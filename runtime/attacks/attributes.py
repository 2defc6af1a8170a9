"""Who and what is in the picture? Eve names the class of each picture, without having to see it.

    Eve knows      the classes of her own images; what she receives of them, or makes of it, under keys that she draws herself
    she does       learns to tell the classes on three quarters of her images, and chooses on the rest what does it best

        pictures ─┬─ linear ───┐                            linear: principal components, linear discriminant, shrunk covariance
                  └─ network ──┼─ the best on the rest ── class           network: three convolutions, all questions at once
        symbols ──┬─ linear ───┤
                  └─ network ──┘        linear of symbols: also the fingerprints of ``identification``, which survive reordering

Every class counts as much, however rare it is: discriminants have equal priors, the network's loss has equal weights, and
what is measured is the balanced accuracy. Probes of what representations hold: Alain and Bengio 2016 (arXiv 1610.01644);
attributes as leakage: Song and Shmatikov 2020, "Overlearning reveals sensitive attributes" (ICLR).

Positive control: no defence, where the classes must be told by far better than chance. Classes that nobody tells show nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.runtime.attacks.accelerator import best_device
from semseal.runtime.attacks.ordering import Scores
from semseal.runtime.metrics import mean_share
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

COMPONENTS = 64  # principal ones of a linear probe, at most
BATCH_SIZE = 32
LEARNING_RATE = 2e-3

Truth = NDArray[np.int64]  # the class of each picture, -1 where it is not known


@dataclass(frozen=True)
class Seen:
    """What Eve has of n pictures in one form: maps float32 [n, channels, rows, columns], and more figures [n, d]."""

    maps: NDArray[np.float32]
    figures: Scores


@dataclass(frozen=True)
class Named:
    """The class that Eve names for each picture, int64 [n]; how she found it, and what every other way names."""

    guess: Truth
    way: str
    ways: dict[str, Truth]


class Probe(nn.Module):
    """Three convolutions over a map [batch, channels, rows, columns] -> logits of the classes, one question after another.

    What is in a picture may be anywhere, or in one place: 4 x 4 places are told apart.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(channels, 24, 3, 2, 1), nn.GroupNorm(8, 24), nn.ReLU()),
            *(nn.Conv2d(24, 32, 3, 2, 1), nn.GroupNorm(8, 32), nn.ReLU()),
            *(nn.Conv2d(32, 48, 3, 2, 1), nn.GroupNorm(8, 48), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3)),
        )
        self.last = nn.Linear(48 * 16, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.last(self.convolutions(maps))
        return logits


def name_classes(
    practice: Mapping[str, Seen],
    truths: Mapping[str, Truth],
    received: Mapping[str, Seen],
    epochs: int,
    seed: int,
    advance: Callable[[int], None] = lambda pictures: None,
) -> dict[str, Named]:
    """An answer to every question about what is ``received``, learnt on ``practice`` and its ``truths``.

    The keys of ``practice`` and ``received`` name the forms, those of ``truths`` the questions; classes are 0, 1, ... and each
    occurs in the practice. ``advance`` is called with the pictures of each step of a network.
    """
    n = len(next(iter(truths.values())))
    order = np.random.default_rng(seed).permutation(n)
    learn, weigh = order[n // 4 :], order[: n // 4]
    guesses: dict[str, dict[str, tuple[Truth, Truth]]] = {name: {} for name in truths}  # for the rest, for what is received
    for form, seen in practice.items():
        for name, found in _linear(seen, truths, learn, weigh, received[form]).items():
            guesses[name][f"linear on {form}"] = found
        for name, found in _network(seen, truths, learn, weigh, received[form], epochs, seed, advance).items():
            guesses[name][f"network on {form}"] = found
    return {name: _best(ways, truths[name][weigh]) for name, ways in guesses.items()}


def _best(ways: dict[str, tuple[Truth, Truth]], truth: Truth) -> Named:
    known = truth >= 0
    scores = {way: mean_share(truth[known], guess[known]) for way, (guess, _) in ways.items()}
    way = max(scores, key=lambda name: scores[name])
    return Named(ways[way][1], way, {name: found for name, (_, found) in ways.items()})


def _linear(
    seen: Seen, truths: Mapping[str, Truth], learn: Truth, weigh: Truth, received: Seen
) -> dict[str, tuple[Truth, Truth]]:
    """Guesses for the rest and for what is received, by question."""
    flat = seen.maps.reshape(len(seen.maps), -1)
    count = max(1, min(COMPONENTS, len(learn) // 3, flat.shape[1]))
    components = PCA(count, svd_solver="randomized", random_state=0).fit(flat[learn])
    scaler = StandardScaler().fit(np.concatenate([components.transform(flat[learn]), seen.figures[learn]], axis=1))

    def features(part: Seen, which: Truth | slice) -> Scores:
        projected = components.transform(part.maps[which].reshape(len(part.maps[which]), -1))
        scaled: Scores = scaler.transform(np.concatenate([projected, part.figures[which]], axis=1))
        return scaled

    practice, rest, there = features(seen, learn), features(seen, weigh), features(received, slice(None))
    found: dict[str, tuple[Truth, Truth]] = {}
    for name, truth in truths.items():
        known = truth[learn] >= 0
        classes = np.unique(truth[learn][known])
        if len(classes) < 2:  # the quarter that is kept has the others
            only = int(classes[0]) if len(classes) else 0
            found[name] = np.full(len(rest), only), np.full(len(there), only)
            continue
        discriminant = LinearDiscriminantAnalysis("lsqr", shrinkage="auto", priors=np.full(len(classes), 1 / len(classes)))
        discriminant.fit(practice[known], truth[learn][known])
        found[name] = discriminant.predict(rest), discriminant.predict(there)
    return found


def _network(
    seen: Seen,
    truths: Mapping[str, Truth],
    learn: Truth,
    weigh: Truth,
    received: Seen,
    epochs: int,
    seed: int,
    advance: Callable[[int], None],
) -> dict[str, tuple[Truth, Truth]]:
    """The same by a network."""
    device, counts = best_device(), {name: int(truth.max()) + 1 for name, truth in truths.items()}
    mean, deviation = seen.maps[learn].mean((0, 2, 3), keepdims=True), seen.maps[learn].std((0, 2, 3), keepdims=True) + 1e-6

    def given(maps: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(((maps - mean) / deviation).astype(np.float32)).to(device)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Probe(seen.maps.shape[1], sum(counts.values())).to(device)
        _train(
            network, given(seen.maps[learn]), {name: truth[learn] for name, truth in truths.items()}, counts, epochs, advance
        )
    logits = [_logits(network, given(part)) for part in (seen.maps[weigh], received.maps)]
    found, start = {}, 0
    for name, count in counts.items():
        found[name] = logits[0][:, start : start + count].argmax(1), logits[1][:, start : start + count].argmax(1)
        start += count
    return found


def _train(
    network: Probe, maps: Tensor, truths: dict[str, Truth], counts: dict[str, int], epochs: int, advance: Callable[[int], None]
) -> None:
    """Every class of a question weighs as much, and every question."""
    device = maps.device
    answers = {name: torch.from_numpy(truth).to(device) for name, truth in truths.items()}
    weights = {}
    for name, truth in truths.items():
        sizes = np.bincount(truth[truth >= 0], minlength=counts[name])
        weights[name] = torch.from_numpy((1 / np.maximum(sizes, 1)).astype(np.float32)).to(device)
    steps = epochs * -(-len(maps) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(maps)).split(BATCH_SIZE):
            logits = network(maps[chosen.to(device)])
            parts = logits.split(list(counts.values()), dim=1)
            losses = [
                nn.functional.cross_entropy(part, answers[name][chosen.to(device)], weights[name], ignore_index=-1)
                for name, part in zip(counts, parts, strict=True)
                if bool((answers[name][chosen.to(device)] >= 0).any())
            ]
            if losses:
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()
                optimizer.step()
            schedule.step()
            advance(len(chosen))


def _logits(network: Probe, maps: Tensor) -> Scores:
    network.eval()
    with torch.no_grad():
        found: Scores = torch.cat([network(part) for part in maps.split(BATCH_SIZE)]).double().cpu().numpy()
    return found

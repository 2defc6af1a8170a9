"""Stand-in for the table of attacks, until it lands in ``semseal.runtime.audit.attacks``."""

from collections.abc import Callable
from dataclasses import dataclass

from semseal.runtime.defense.defenses import Defense


def _always(defense: Defense) -> bool:
    return True


def _schemes(defense: Defense) -> bool:
    return defense.permutes or defense.substitutes


@dataclass(frozen=True)
class Attack:
    name: str
    title: str
    knows: str
    control: str
    applies: Callable[[Defense], bool] = _always
    game: bool = False
    optimised: bool = False
    published: bool = False
    misuse: bool = False


ATTACKS = (
    Attack("white-box", "optimises a picture until the transmitter would send what she received", "the transmitter", "none",
           optimised=True, published=True),
    Attack("black-box", "trains a small network on what the defended link sends", "the link as a black box", "none",
           published=True),
    Attack("no-key", "feeds what she received straight to Bob's decoder", "the receiver", "none"),
    Attack("row-ordering", "puts the rows back in order by their likeness", "the defence", "permute"),
    Attack("brute-force", "tries the schemes of the shared sets", "the scheme sets", "permute", _schemes),
    Attack("learned-inverse", "trains a U-Net on the defence under random keys", "the defence", "none"),
    Attack("set-inverse", "trains the same network, blind to the order of rows", "the defence", "permute"),
    Attack("row-matching", "runs white-box and matches rows inside the optimisation", "the transmitter and the defence",
           "permute", optimised=True),
    Attack("reused-scheme", "undoes a V that was used again, from one known pair", "one pair of pictures sent", "permute",
           _schemes, misuse=True),
    Attack("reused-stream", "undoes a key stream that was used again, from 64 known packets", "64 pictures sent", "permute",
           lambda defense: defense.name in ("permute", "mix"), misuse=True),
    Attack("four-packets", "receives each picture four times, under fresh keys", "the defence", "permute"),
    Attack("identification", "names the picture among those that she knows", "what may be sent", "none", game=True),
    Attack("linkability", "says whether two packets show the same picture", "the defence", "none", game=True),
    Attack("distinguishing", "says which of two chosen pictures was sent", "both pictures", "none", game=True),
)  # fmt: skip
BY_NAME = {attack.name: attack for attack in ATTACKS}

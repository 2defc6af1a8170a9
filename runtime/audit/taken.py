"""The pictures of an audit: those that are measured on, and the attacker's; fewer than asked for where there are no more.

    valid ────────────── the pictures that are sent
    test, then train ─── the attacker's images            train only where test has too few: nobody is measured on it

An attack that these do not suffice for fails its positive control, and its cells are void; they never say that nothing leaks.
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.audit.settings import Question, Settings
from semseal.runtime.errors import PictureError
from semseal.runtime.files import shown
from semseal.runtime.pictureclasses import classes_of, folders_of, in_turn
from semseal.runtime.pictures import Pictures, open_pictures

MIN_PICTURES = 6  # an answer is compared with those to the other pictures, and under substitution with those to other pairs
MIN_ATTACKER_PICTURES = 40  # half of them to learn from, half to weigh what was learnt
MIN_FILES = 50  # of a folder that is not split already: a fifth is measured on, the rest is the attacker's
MIN_OF_A_CLASS = 3  # pictures that are sent, for a class to count
MIN_ATTACKERS_OF_A_CLASS = 8

_Classes = dict[str, tuple[str, ...]]  # by question, of each picture


@dataclass(frozen=True)
class Taken:
    """``settings`` are those asked for, with the numbers of pictures that there are; ``skipped`` says what is missing."""

    images: NDArray[np.float32]
    attacker_images: NDArray[np.float32]
    settings: Settings
    skipped: dict[str, str]
    questions: tuple[Question, ...] = ()  # that the data has an answer to, for the attack ``attributes``
    unasked: tuple[str, str] = ("", "")  # why there is none, and the fix


def take_pictures(data: str, settings: Settings, height: int, width: int) -> Taken:
    """Says what is missing on stderr, too. Raises PictureError where there are too few pictures for an audit."""
    sent = open_pictures(data, "valid")
    images, skipped, classes = _up_to(sent, settings.pictures, height, width)
    images = images[: len(images) // 2 * 2]
    count = settings.attacker_pictures
    attacker_images, more, attackers = _take_attackers(data, count, height, width)
    skipped |= more
    needed = min(count, MIN_ATTACKER_PICTURES)
    if len(images) < MIN_PICTURES or len(attacker_images) < needed:
        first = next((f"; {len(skipped)} skipped, first {name}: {reason}" for name, reason in skipped.items()), "")
        raise PictureError(
            f"{shown(data)}: an audit needs {MIN_PICTURES} pictures to measure on and {needed} for Eve, and there "
            f"are {len(images)} and {len(attacker_images)}{first}",
            f"give a folder of at least {MIN_FILES} pictures, or of 1,000 for a full audit; or --data photos",
        )
    few = {
        f"{settings.pictures - len(images)} of {settings.pictures} pictures to measure on": len(images) < settings.pictures,
        f"{count - len(attacker_images)} of {count} attacker's images": len(attacker_images) < count,
    }
    for what in (what for what, is_few in few.items() if is_few):
        skipped[what] = f"there are no more in {shown(data)}; a full audit takes a folder of 1,000 pictures, --quick one of 250"
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    found = replace(
        settings,
        pictures=len(images),
        attacker_pictures=len(attacker_images),
        optimised_pictures=min(settings.optimised_pictures, len(images)),
    )
    asked = [
        Question(name, known[: len(images)], attackers[name]) for name, known in classes.items() if len(attackers.get(name, ()))
    ]
    questions = tuple(question for question in asked if _is_answerable(question))
    return Taken(images, attacker_images, found, skipped, questions, ("", "") if questions else _why_unasked(data, len(asked)))


def take_attacker_images(data: str, count: int, height: int, width: int) -> tuple[NDArray[np.float32], dict[str, str]]:
    """So many, or as many as there are, and what was skipped."""
    return _take_attackers(data, count, height, width)[:2]


def answerable(question: Question) -> tuple[str, ...]:
    """The classes of which there are enough pictures on both sides."""
    sent, attackers = Counter(question.of_sent), Counter(question.of_attackers)
    return tuple(
        sorted(name for name in sent if name and sent[name] >= MIN_OF_A_CLASS and attackers[name] >= MIN_ATTACKERS_OF_A_CLASS)
    )


def _is_answerable(question: Question) -> bool:
    return len(answerable(question)) > 1


def _why_unasked(data: str, asked: int) -> tuple[str, str]:
    if asked:
        enough = f"{MIN_OF_A_CLASS} pictures to measure on and {MIN_ATTACKERS_OF_A_CLASS} of the attacker's"
        return f"of no two classes there are {enough}", "give more --pictures"
    if data.startswith("celeba:"):
        return f"{shown(data)} has neither list_attr_celeba nor identity_CelebA beside its pictures", "put one of them there"
    where = "has no folders in it" if data.startswith("folder:") else "says nothing of its pictures"
    return f"{shown(data)} {where}", "give --data folder:FOLDER with a folder for each class"


def _take_attackers(data: str, count: int, height: int, width: int) -> tuple[NDArray[np.float32], dict[str, str], _Classes]:
    found, skipped, classes = _up_to(open_pictures(data, "test"), count, height, width)
    if len(found) < count and (others := _training_pictures(data)):
        lent, more, theirs = _up_to(others, count - len(found), height, width)
        found, skipped = np.concatenate([found, lent]), skipped | more
        classes = {name: (*known, *theirs[name]) for name, known in classes.items() if name in theirs}
    return found, skipped, classes


def _training_pictures(data: str) -> Pictures | None:
    """Each once, as those of the other parts."""
    try:
        return replace(open_pictures(data, "train"), whole=True)
    except PictureError:
        return None


def _up_to(pictures: Pictures, n: int, height: int, width: int) -> tuple[NDArray[np.float32], dict[str, str], _Classes]:
    """n pictures or as many as there are, what was skipped, and the classes of the pictures.

    Of a folder with folders in it, one of each in turn, so that a few pictures are of every class.
    """
    seed = 0 if pictures.split == "valid" else 1
    if pictures.spec.startswith("folder:"):
        folder = Path(os.path.expanduser(pictures.spec.removeprefix("folder:")))
        pictures = replace(pictures, paths=in_turn(pictures.paths, folders_of(folder, pictures.split, pictures.paths)))
    try:
        found = pictures.take(n, height, width, seed=seed, fewer=True)
    except PictureError:
        return np.empty((0, 3, height, width), np.float32), pictures.reasons(), {}
    return found, pictures.reasons(), classes_of(pictures.spec, pictures.split, pictures.taken)

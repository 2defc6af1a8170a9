"""One cell as a piece of work for another process: what it needs of an audit, and the scene that it is measured in."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from semseal.runtime.audit.scene import Images, Scene
from semseal.runtime.audit.settings import Place, Question, Settings
from semseal.runtime.bundle import open_bundle


@dataclass(frozen=True)
class Work:
    """What a process needs for the cells of one bundle at one precision; equal when the cells' content is."""

    identity: str
    bundle: Path
    place: Place
    threads: int | None
    networks: Path
    images: Images = field(compare=False)
    attacker_images: Images = field(compare=False)
    questions: tuple[Question, ...] = field(compare=False)
    settings: Settings = field(compare=False)


@lru_cache(maxsize=1)
def scene_of(work: Work) -> Scene:
    """The scene of a place; that of the last one is kept."""
    bundle = open_bundle(work.bundle)
    return Scene(
        bundle, work.images, work.attacker_images, work.settings, work.place, work.threads, work.questions, work.networks
    )

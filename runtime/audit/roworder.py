"""Received rows of a scene put back into order: what every attack begins with that takes them in order."""

from functools import lru_cache

import numpy as np
from semseal.runtime.attacks import bruteforce, ordering
from semseal.runtime.audit.scene import Rows, Scene
from semseal.runtime.defense.defenses import Defense


def has_schemes(defense: Defense) -> bool:
    """Whether rows are not where they were."""
    return defense.permutes or defense.substitutes


def in_order(model: ordering.RowModel, received: Rows) -> Rows:
    """The rows [groups * streams, h, r] of every group by the model of rows."""
    groups, streams, h, r = received.shape
    pools = received.reshape(groups, streams * h, r)
    return np.concatenate([ordering.arrange(pool, ordering.order(model, pool, streams)) for pool in pools])


@lru_cache(maxsize=2)  # of one packet and of four; a scene is large, so no more are held
def row_model(scene: Scene, known_db: float) -> ordering.RowModel:
    """What the attacker's images say about rows at the SNR of what Eve works with."""
    return ordering.fit(scene.attacker_rows, known_db, max_distance=bruteforce.SCORED_DISTANCES)

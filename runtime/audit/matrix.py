"""Which cells an audit measures: attack x defence x Eve's SNR x place (bundle, main SNR, engine, precision).

The cell of an attack's positive control belongs to every audit that holds the attack.
"""

import dataclasses
from collections.abc import Iterator

from semseal.runtime.attacks.accelerator import best_device
from semseal.runtime.attacks.whitebox import FAST
from semseal.runtime.audit.attacks import ATTACKS, BY_NAME, snrs_of
from semseal.runtime.audit.settings import Cell, Place, Settings
from semseal.runtime.bundle import PRECISIONS
from semseal.runtime.defense.defenses import BY_NAME as DEFENSES
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.engine import ENGINES

FULL = Settings(attacks=tuple(BY_NAME), defenses=MODES)  # what the link can send; rivals where they are asked for
QUICK = dataclasses.replace(
    FULL,
    pictures=16,
    optimised_pictures=12,
    attacker_pictures=200,
    whitebox=dataclasses.replace(FAST, steps=100, lr=0.1),
    matching=dataclasses.replace(FAST, steps=50, lr=0.1),
    blackbox_steps=150,
    learned_steps=20,
    flow_width=16,
    flow_batch=8,
    prior_steps=16,
    generative_levels=1,  # a model trained so briefly does not take out the noise that is drawn between levels
    generative_pulls=20,
    generative_refined=20,
    flow_steps=16,
    flow_levels=4,
    flow_draws=1,
    trials=40,
    probe_pictures=80,
    probe_epochs=4,
    timed_calls=120,
    eve_snrs=(10.0,),
)
DEMO = dataclasses.replace(
    QUICK,
    pictures=24,
    blackbox_steps=400,
    defenses=("none", "permute+substitute", "mix"),
    attacks=(*(attack.name for attack in ATTACKS if attack.published), "row-ordering"),
)


def with_gpu(settings: Settings) -> Settings:
    """``settings`` for this machine: on a GPU every search takes all pictures, and the generative Eve's models are larger."""
    if best_device().type == "cpu":
        return settings
    return dataclasses.replace(
        settings,
        optimised_pictures=settings.pictures,
        flow_width=128,
        flow_batch=64,
        prior_steps=5000,
        flow_steps=600,
        generative_levels=20,
        generative_pulls=6,
        generative_refined=160,
    )


def cells(settings: Settings, place: Place) -> Iterator[Cell]:
    """Every cell of one place: Bob and the mean picture first, then each attack, its control before what it controls."""
    used = {BY_NAME[name].control for name in settings.attacks} | set(settings.defenses)
    yield place.cell("mean-picture", "none", None)
    for defense in [name for name in DEFENSES if name in used]:
        yield place.cell("bob", defense, None)
    for snr in settings.eve_snrs:
        for attack in map(BY_NAME.__getitem__, settings.attacks):
            if snr not in snrs_of(attack, settings):
                continue
            for defense in dict.fromkeys((attack.control, *settings.defenses)):
                if attack.applies(DEFENSES[defense]):
                    yield place.cell(attack.name, defense, snr)


def both(one: Settings, two: Settings) -> Settings:
    """The first settings, asked for the cells of the second as well."""

    def either(known: tuple[str, ...], name: str) -> tuple[str, ...]:
        return tuple(value for value in known if value in {*getattr(one, name), *getattr(two, name)})

    return dataclasses.replace(
        one,
        eve_snrs=tuple(sorted({*one.eve_snrs, *two.eve_snrs})),
        main_snrs=tuple(sorted({*one.main_snrs, *two.main_snrs})),
        defenses=either(tuple(DEFENSES), "defenses"),
        attacks=either(tuple(BY_NAME), "attacks"),
        precisions=either(PRECISIONS, "precisions"),
        engines=either(ENGINES, "engines"),
    )

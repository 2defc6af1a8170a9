"""What an audit attacks: each bundle under a name of its own, with the engine and the channels that it is deployed with.

manifest "engines" ────────── the engine whose plans the bundle holds, else onnxruntime-cpu   unless --engine says otherwise
manifest "training.channel" ─ the channel that the link was trained for, else awgn            unless --channel says otherwise
"""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semseal.runtime import channel, ofdm, radio
from semseal.runtime.audit.digitalrival import DigitalLink
from semseal.runtime.audit.settings import Place, Settings
from semseal.runtime.bundle import Bundle, is_packaged
from semseal.runtime.channel import MAX_SNR_DB
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import AuditError, BundleError, EngineError
from semseal.runtime.files import shown

DEFAULT_ENGINE = "onnxruntime-cpu"
KNOWN_CHANNELS = (*channel.CHANNELS, *radio.CHANNELS)
MAX_ANTENNAS = 64


@dataclass(frozen=True)
class Link:
    """A bundle, its name in the audit, and where it is attacked: SNRs of Bob's, engines, and channels, Bob's with Eve's."""

    bundle: Bundle
    name: str
    main_snrs: tuple[float, ...]
    engines: tuple[str, ...]
    channels: tuple[tuple[str, str], ...]

    def places(self, settings: Settings) -> list[Place]:
        """Its places at the precisions of ``settings``, the first one first."""
        return [
            Place(self.name, main_snr, engine, precision, main, eve, settings.eve_antennas)
            for main_snr in self.main_snrs
            for main, eve in self.channels
            for engine in self.engines
            for precision in settings.precisions
        ]


def links(bundles: Sequence[Bundle], settings: Settings) -> list[Link]:
    """Each bundle as ``settings`` ask for it, by SNR. Raises AuditError for one that is given twice."""
    names = _names(bundles)
    found = []
    for bundle, name in zip(bundles, names, strict=True):
        main_channels = settings.channels or (trained_channel(bundle),)
        found.append(
            Link(
                bundle,
                name,
                settings.main_snrs if bundle.has_scale and settings.main_snrs else (bundle.snr_db,),
                settings.engines or (deployed_engine(bundle),),
                tuple((main, settings.eve_channel or main) for main in main_channels),
            )
        )
    return sorted(found, key=lambda link: (link.main_snrs, link.name))


def deployed_engine(bundle: Bundle) -> str:
    """The engine whose plans the bundle holds, the first of several; where it holds none, ``onnxruntime-cpu``."""
    return str(next(iter(bundle.manifest.get("engines") or ()), DEFAULT_ENGINE))


def trained_channel(bundle: Bundle) -> str:
    """The channel that the link was trained for, by the manifest; AWGN where it says nothing, as of models that were packed."""
    training = bundle.manifest.get("training")
    found = training.get("channel", "awgn") if isinstance(training, dict) else "awgn"
    if found not in KNOWN_CHANNELS:
        raise BundleError(f"{bundle.path} was trained for a channel {found!r} that is not known here", "choose one: --channel")
    return str(found)


def taps(bundle: Bundle) -> int:
    """Those of its multipath channel."""
    training: Any = bundle.manifest.get("training")
    found = training.get("taps", channel.TAPS) if isinstance(training, dict) else channel.TAPS
    if type(found) is not int or not 1 <= found <= bundle.n_symbols:
        raise BundleError(f"{bundle.path} was trained for {found!r} taps", "make the bundle again")
    return found


def channel_uses(link: Link, main_channel: str, settings: Settings) -> float:
    """Of one picture without a defence, with what the main channel adds: its cyclic prefixes, and pilots."""
    n = link.bundle.n_symbols
    if main_channel in radio.CHANNELS:
        return ofdm.channel_uses(n, settings.radio)
    return n + taps(link.bundle) - 1 if main_channel == "multipath" else n


def with_earlier(found: list[Link], engines: dict[str, tuple[str, ...]], everything: Settings) -> list[Link]:
    """The links of all that one folder holds: at every SNR of ``everything``, and on the engines of an earlier run as well."""
    return [
        dataclasses.replace(
            link,
            main_snrs=everything.main_snrs if link.bundle.has_scale and everything.main_snrs else link.main_snrs,
            engines=tuple(dict.fromkeys((*engines.get(link.name, ()), *link.engines))),
        )
        for link in found
    ]


def check_engines(link: Link, settings: Settings) -> None:
    """Open every engine with what it is to run, so that one that cannot be had is told before anything is measured.

    Raises EngineError, and BundleError for a graph that is damaged or a plan that is not there.
    """
    for engine in link.engines:
        for precision in settings.precisions:
            for side in ("transmitter", "receiver"):
                program = link.bundle.program(side, precision, engine)
                try:
                    open_engine(engine, program)
                except EngineError as error:
                    raise EngineError(f"{link.name}: {error.message}", _instead(error.hint, engine, settings)) from None


def _instead(hint: str, engine: str, settings: Settings) -> str:
    """The hint of an engine that cannot be had; one that nobody asked for by name may be exchanged for another."""
    if settings.engines or engine == DEFAULT_ENGINE:
        return hint
    other = f"--engine {DEFAULT_ENGINE} attacks the graphs that its plans were built from"
    return f"{hint}; or {other}" if hint else other


def check(found: list[Link], settings: Settings) -> None:
    """Raise for what cannot be measured, before anything is written."""
    bundles = [link.bundle for link in found]
    if settings.main_snrs and not any(bundle.has_scale for bundle in bundles):
        raise AuditError("a main SNR can be chosen only for a model that is for a range of them", "leave out --main-snr")
    if unfit := [snr for snr in settings.main_snrs if not abs(snr) <= MAX_SNR_DB]:
        raise AuditError(f"a main SNR must be in -{MAX_SNR_DB:g}..{MAX_SNR_DB:g} dB, got {unfit[0]}", "such as --main-snr 10")
    if len({(bundle.height, bundle.width) for bundle in bundles}) > 1:
        raise AuditError("the bundles take images of different sizes", "audit them one at a time")
    if not settings.eve_snrs or not all(abs(snr) <= MAX_SNR_DB or snr == math.inf for snr in settings.eve_snrs):
        raise AuditError(
            f"Eve's SNRs must be in -{MAX_SNR_DB:g}..{MAX_SNR_DB:g} dB, or infinite without noise, got {settings.eve_snrs}",
            "such as --eve-snr 10 or --eve-snr none",
        )
    if not 1 <= settings.eve_antennas <= MAX_ANTENNAS:
        raise AuditError(f"Eve has 1 to {MAX_ANTENNAS} antennas, got {settings.eve_antennas}")
    for kind in {kind for link in found for pair in link.channels for kind in pair}:
        if kind not in KNOWN_CHANNELS:
            raise AuditError(f"there is no channel {kind!r}", f"choose one of {', '.join(KNOWN_CHANNELS)}")
        if kind in radio.CHANNELS:
            radio.check(kind, settings.radio)
    for link in found:
        taps(link.bundle)
        check_engines(link, settings)
    check_digital(found, settings)


def check_digital(found: list[Link], settings: Settings) -> None:
    """Make the digital link that is asked for at every place, so that one that cannot be had is told before it is measured."""
    if any(BY_NAME[name].digital for name in settings.defenses):
        for link in found:
            for snr_db in link.main_snrs:
                for main_channel, _ in link.channels:
                    digital_link(link.bundle, main_channel, snr_db)


def digital_link(bundle: Bundle, main_channel: str, snr_db: float) -> DigitalLink:
    """The digital link in place of a bundle. Raises AuditError where it cannot be had."""
    if main_channel != "awgn":
        raise AuditError(
            f"the digital link has one rate for all frames, and no use for a {main_channel} channel",
            "add --channel awgn, or leave out --defense digital",
        )
    return DigitalLink(bundle.n_symbols, snr_db, bundle.height, bundle.width)


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """The last part of each bundle's folder, and as many before it as tell it from the others; a packaged one says so."""
    paths = [Path(os.path.abspath(bundle.path)) for bundle in bundles]
    if twice := [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]:
        raise AuditError(f"{twice[0]} is given twice", "give each bundle once")
    names = [shown(path.name) for path in paths]
    longest = max(len(path.parts) for path in paths)
    for length in range(2, longest + 1):
        shared = {name for name, count in Counter(names).items() if count > 1}
        names = [
            f"{path.name} (packaged)"
            if name in shared and is_packaged(path)
            else shown("/".join(path.parts[-length:]))
            if name in shared
            else name
            for name, path in zip(names, paths, strict=True)
        ]
    return names

"""A bundle as a CycloneDX 1.7 bill of materials: what the link is made of, how good it is, and what is known against it.

    the model ─┬─ graphs and plans, by digest
               ├─ model card: data, parity in dB, leakage with its intervals (where an audit was named)
               ├─ training and calibration data, the programs that made it
               └─ what its cryptography is made of
    vulnerabilities of what is installed or needed, waived or not

The library writes everything but the model card, for which it has no classes (cyclonedx-python-lib, issue 912).
"""

import json
from collections.abc import Iterator
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.crypto import (
    AlgorithmProperties,
    CryptoAssetType,
    CryptoPrimitive,
    CryptoProperties,
    RelatedCryptoMaterialProperties,
    RelatedCryptoMaterialType,
)
from cyclonedx.model.impact_analysis import ImpactAnalysisState
from cyclonedx.model.vulnerability import BomTarget, Vulnerability, VulnerabilityAnalysis, VulnerabilitySource
from cyclonedx.output.json import JsonV1Dot7
from semseal.runtime.bundle import Bundle
from semseal.runtime.environment import version
from semseal.runtime.errors import BundleError, CheckError
from semseal.runtime.trust.deployment import Deployment
from semseal.runtime.trust.evidence import measured, parity_rows
from semseal.runtime.trust.finding import Report
from semseal.runtime.trust.running import known_vulnerabilities

ALGORITHMS = (
    # name, what it does here, primitive, parameters
    ("Ed25519", "signs the manifest", CryptoPrimitive.SIGNATURE, "255"),
    ("SHA-256", "digests of graphs and plans", CryptoPrimitive.HASH, "256"),
    ("HKDF-SHA-256", "derives a key for each purpose", CryptoPrimitive.KDF, "256"),
    ("ChaCha20-Poly1305", "seals the headers", CryptoPrimitive.AE, "256"),
    ("ChaCha20", "the key stream of mix", CryptoPrimitive.STREAM_CIPHER, "256"),
)
MODEL = "model"


def as_cyclonedx(d: Deployment, report: Report) -> str:
    """Raises CheckError for a bundle that cannot be trusted so far as to be described."""
    try:
        bundle = d.bundle
    except BundleError as error:
        raise CheckError(f"no bill of materials of {d.name}: {error.message}", error.hint) from None
    model = Component(
        name=report.bundle,
        version=bundle.digest.hex(),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=MODEL,
        description=repr(bundle),
        components=_files(bundle),
        properties=[Property(name="semseal:bandwidth_ratio", value=f"{bundle.bandwidth_ratio:.4f}")],
    )
    bom = Bom(components=[*_data(bundle), *_programs(bundle), *_cryptography()], vulnerabilities=_vulnerabilities(report))
    bom.metadata.component = model
    bom.metadata.tools.components.add(Component(name="semseal", version=report.version, type=ComponentType.APPLICATION))
    bom.register_dependency(model, [component for component in bom.components if component.type != ComponentType.DATA])
    document = json.loads(JsonV1Dot7(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _card(d)
    return json.dumps(document, indent=1) + "\n"


def _files(bundle: Bundle) -> list[Component]:
    return [
        Component(
            name=name,
            type=ComponentType.MACHINE_LEARNING_MODEL if name.endswith((".onnx", ".engine")) else ComponentType.FILE,
            bom_ref=f"file:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry["sha256"])],
            properties=[Property(name="semseal:bytes", value=str(entry["size"]))],
        )
        for name, entry in bundle.manifest["files"].items()
    ]


def _data(bundle: Bundle) -> list[Component]:
    """What it was trained, calibrated and measured on, as far as its manifest says."""
    training, parity = bundle.manifest.get("training"), bundle.manifest.get("parity")
    uses = {"training data": training, "data of calibration and parity": parity}
    return [
        Component(name=str(about["data"]), type=ComponentType.DATA, bom_ref=f"data:{use}", description=use)
        for use, about in uses.items()
        if isinstance(about, dict) and "data" in about
    ]


def _programs(bundle: Bundle) -> list[Component]:
    """Those that made it, and those that vulnerabilities are known of and that are installed here."""
    tools = bundle.manifest.get("tools")
    made = {(str(name), str(number), "made the bundle") for name, number in tools.items()} if isinstance(tools, dict) else set()
    names = [name for entry in known_vulnerabilities()["packages"] for name in entry["names"]]
    here = {(name, number, "installed here") for name in names if (number := version(name)) is not None}
    return [
        Component(name=name, version=number, type=ComponentType.LIBRARY, bom_ref=f"{name}@{number}: {what}", description=what)
        for name, number, what in sorted(made | here)
    ]


def _cryptography() -> list[Component]:
    algorithms = [
        Component(
            name=name,
            type=ComponentType.CRYPTOGRAPHIC_ASSET,
            bom_ref=f"crypto:{name}",
            description=what,
            crypto_properties=CryptoProperties(
                asset_type=CryptoAssetType.ALGORITHM,
                algorithm_properties=AlgorithmProperties(primitive=primitive, parameter_set_identifier=parameters),
            ),
        )
        for name, what, primitive, parameters in ALGORITHMS
    ]
    keys = {
        "key of the link": (RelatedCryptoMaterialType.SECRET_KEY, "crypto:HKDF-SHA-256"),
        "owner's public key": (RelatedCryptoMaterialType.PUBLIC_KEY, "crypto:Ed25519"),
    }
    return algorithms + [
        Component(
            name=name,
            type=ComponentType.CRYPTOGRAPHIC_ASSET,
            bom_ref=f"crypto:{name}",
            crypto_properties=CryptoProperties(
                asset_type=CryptoAssetType.RELATED_CRYPTO_MATERIAL,
                related_crypto_material_properties=RelatedCryptoMaterialProperties(
                    type=kind, algorithm_ref=BomRef(algorithm), size=256
                ),
            ),
        )
        for name, (kind, algorithm) in keys.items()
    ]


def _vulnerabilities(report: Report) -> list[Vulnerability]:
    """What was published against what is installed or needed here; with the reason where somebody answers for it."""
    entries = known_vulnerabilities()["packages"]
    found = []
    for finding in report.findings:
        if finding.id not in ("SEMSEAL-V01", "SEMSEAL-V02"):
            continue
        entry = next(entry for entry in entries if entry["ids"][0] in finding.message)
        analysis = None
        if finding.waiver is not None:
            why = f"{finding.waiver.reason} ({finding.waiver.owner}, until {finding.waiver.expiry})"
            analysis = VulnerabilityAnalysis(state=ImpactAnalysisState.NOT_AFFECTED, detail=why)
        found += [
            Vulnerability(
                id=name,
                source=VulnerabilitySource(url=XsUri(entry["source"])),
                description=finding.message,
                recommendation=finding.remedy,
                affects=[BomTarget(ref=MODEL)],
                analysis=analysis,
            )
            for name in entry["ids"]
        ]
    return found


def _card(d: Deployment) -> dict[str, Any]:
    bundle = d.bundle
    shape = f"[batch, 3, {bundle.height}, {bundle.width}]"
    training = bundle.manifest.get("training")
    network = training.get("model", {}).get("network") if isinstance(training, dict) else None
    return {
        "modelParameters": {
            "task": "semantic communication: pictures as analog symbols",
            "architectureFamily": "DeepJSCC",
            **({"modelArchitecture": str(network)} if network else {}),
            "datasets": [{"ref": component.bom_ref.value} for component in _data(bundle)],
            "inputs": [{"format": f"float32 {shape}, RGB in 0..1"}],
            "outputs": [{"format": f"{bundle.n_symbols} complex symbols; float32 {shape}"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": [*_parity(d), *_leakage(d)]},
        "considerations": {
            "useCases": ["a transmitter and a receiver that share a key, over a noisy channel"],
            "technicalLimitations": ["the defence hides pictures from an eavesdropper; it does not authenticate the symbols"],
        },
    }


def _parity(d: Deployment) -> Iterator[dict[str, Any]]:
    for row in parity_rows(d):
        if row["transmitter"] == row["receiver"]:
            for snr, psnr in row["psnr"].items():
                yield {
                    "type": "PSNR in dB",
                    "value": f"{psnr:.3f}",
                    "slice": f"{row['engine']} {row['transmitter']}, SNR {snr} dB",
                }


def _eve(row: dict[str, Any]) -> str:
    snr = row.get("eve_snr")
    return "Eve without noise" if snr == "none" else f"Eve's SNR {snr} dB"


def _leakage(d: Deployment) -> Iterator[dict[str, Any]]:
    """Every game under what is deployed, with its 95 % interval."""
    for row in measured(d):
        if "high" in row and "low" in row and "value" in row:
            yield {
                "type": f"leakage: {row['attack']}, {row.get('name', '')}, {row.get('measure', '')}",
                "value": f"{row['value']:.4f}",
                "slice": f"{row['defense']}, {_eve(row)}; chance is {row.get('chance')}",
                "confidenceInterval": {"lowerBound": f"{row['low']:.4f}", "upperBound": f"{row['high']:.4f}"},
            }

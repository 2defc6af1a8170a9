"""For violations.py: deployments whose files hold what is secret, or public and should be an input, as constants."""

import json

import numpy as np
from deployed import KEY, REALS, H, Place
from semseal.runtime.defense import mix
from semseal.runtime.defense.schemes import scheme_sets

PLAN = "engines/transmitter.fp32.tensorrt.engine"


def changed(place: Place, **values):
    place.manifest = {**place.manifest, **values}
    place.write()


def with_plan(place: Place, inputs=("image", "index"), version="11.4.1", plan=b"a plan"):
    report = {"engine": "tensorrt", "version": version, "inputs": [{"name": name} for name in inputs]}
    place.files |= {PLAN: plan, f"{PLAN}.json": json.dumps(report).encode()}
    changed(place, engines=["tensorrt"])


def noisy_order(n: int, kind: str) -> np.ndarray:
    return np.random.default_rng(n).permutation(n).astype(kind)


def key_raw(place):
    place.add_constant(np.frombuffer(KEY, np.uint8))


def key_in_the_manifest(place):
    changed(place, note=KEY.hex().upper())


def key_as_numbers(place):
    changed(place, note=list(KEY))


def key_in_a_varint_tensor(place):
    place.add_constant(np.frombuffer(KEY, np.uint8).astype(np.int32), raw=False)


def key_beside_the_bundle(place):
    import base64

    (place.device / "engine.cache").write_bytes(b"\0" * 999 + base64.b64encode(b"??" + KEY + b"?") + b"\0" * 99)


def permutation(place):
    place.add_constant(noisy_order(H, "int64"))


def permutation_as_floats(place):
    place.add_constant(noisy_order(H, "float32"))


def permutation_in_a_varint_tensor(place):
    place.add_constant(noisy_order(H, "int64"), raw=False)


def permutation_of_the_paper(place):
    place.add_constant(np.stack(scheme_sets(KEY, H).permutations).astype(np.int32))


def index_with_substitution(place):
    rng = np.random.default_rng(0)
    place.add_constant((noisy_order(H, "int32") + H * rng.integers(0, 2, H)).astype(np.int32))


def permutation_in_a_plan(place):
    with_plan(place, plan=b"plan" * 99 + noisy_order(H, "int16").tobytes())


def permutation_in_a_cache(place):
    (place.device / "timing.cache").write_bytes(b"x" + noisy_order(H, "int32").tobytes())


def permutation_in_the_manifest(place):
    changed(place, note={"order": noisy_order(H, "int64").tolist()})


def order_of_mix(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(keys.rows[0])


def columns_of_mix(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(keys.columns)


def signs_of_mix(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(keys.signs[0, 0])


def signs_in_a_plan(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    with_plan(place, plan=b"p" + keys.signs[0, 1].astype(np.float32).tobytes())


def signs_of_columns(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(keys.column_signs[0].astype(np.float32))


def signs_in_a_public_matrix(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(mix.matrices(REALS)[2] * keys.column_signs[0, :, 0].astype(np.float32))

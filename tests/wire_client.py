"""A second implementation of docs/wire.md, written from that page, with NumPy, cryptography, ONNX Runtime and nothing else.

It is what somebody would write in another language: slow where that is simpler, and without the guarantees of the package (its
counters and replay window live as long as the object). ``RefusedError`` is raised for whatever the page says is refused.
"""

import base64
import hashlib
import json
import math
import re
import secrets
import struct
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from wire_mix import hkdf, key_stream, looks_like_features, mix_keys, mix_sizes, mixed, unmixed

MODES = ("none", "permute", "substitute", "permute+substitute", "mix")
WINDOW = 1024
DATE = "%Y-%m-%dT%H:%M:%SZ"


class RefusedError(Exception):
    pass


# frame


def write_frame(header, symbols):
    """symbols: float32 [N, 2]"""
    return struct.pack("<4sHI", b"SSF1", len(header), len(symbols)) + header + np.asarray(symbols, "<f4").tobytes()


def read_frame(data):
    if len(data) < 10 or data[:4] != b"SSF1":
        raise RefusedError("no frame")
    size, n = struct.unpack_from("<HI", data, 4)
    if len(data) != 10 + size + 8 * n:
        raise RefusedError("length of the frame")
    symbols = np.frombuffer(data, "<f4", 2 * n, 10 + size).reshape(n, 2)
    if not np.isfinite(symbols).all():
        raise RefusedError("symbols that are not finite")
    return data[10 : 10 + size], symbols


# header


def scale_code(scale):
    return 0 if scale is None else min(max(round(1024 * math.log2(scale)) + 32768, 1), 65535)


def snr_code(snr_db):
    return min(max(round(4 * (snr_db + 32)), 0), 255)


def seal_header(key, digest, mode, session, counter, p=0, s=0, scale=None, snr_db=-32.0, noise=False):
    flags = noise | 2 * (key is not None)
    clear = b"sS" + bytes([2, MODES.index(mode), flags]) + session + struct.pack("<Q", counter)
    secret = struct.pack("<HHHB", p, s, scale_code(scale), snr_code(snr_db))
    if key is None:
        return clear + secret
    cipher = ChaCha20Poly1305(hkdf(key, b"semseal/v1/header", session))
    return clear + cipher.encrypt(struct.pack("<Q", counter) + bytes(4), secret, clear + digest)


def open_header(key, digest, data):
    if len(data) not in (36, 52) or data[:3] != b"sS\2":
        raise RefusedError("no header of version 2")
    clear, mode, flags, session = data[:29], data[3], data[4], data[5:21]
    (counter,) = struct.unpack_from("<Q", data, 21)
    if mode >= len(MODES) or flags & ~3:
        raise RefusedError("mode or flags")
    if bool(flags & 2) != (key is not None) or (len(data) == 52) != bool(flags & 2):
        raise RefusedError("sealed or not")
    secret = data[29:]
    if key is None:
        if mode:
            raise RefusedError("a mode without a key")
    else:
        try:
            cipher = ChaCha20Poly1305(hkdf(key, b"semseal/v1/header", session))
            secret = cipher.decrypt(data[21:29] + bytes(4), secret, clear + digest)
        except InvalidTag:
            raise RefusedError("seal") from None
    p, s, scale, snr = struct.unpack("<HHHB", secret)
    if p > 255 or s > 255:
        raise RefusedError("selection")
    return {
        "mode": MODES[mode],
        "session": session,
        "counter": counter,
        "p": p,
        "s": s,
        "noise": bool(flags & 1),
        "scale": None if scale == 0 else 2.0 ** ((scale - 32768) / 1024),
        "snr_db": snr / 4 - 32,
    }


# keyset


def read_keyset(text):
    """The members of a keyset, and of each key that is not revoked its secret."""
    try:
        found = json.loads(text)
        checksum, keys = found.pop("checksum"), found["keys"]
        members = ["format", "link", "purpose", "direction", "require", "keys"]
        of_keys = ["id", "created", "not_before", "not_after", "state", "secret"]
        good = list(found) == members and all(list(key) == of_keys for key in keys)
        without = json.dumps(found, indent=1) + "\n"
        good &= text == json.dumps({**found, "checksum": checksum}, indent=1) + "\n"
        good &= checksum == hashlib.sha256(without.encode()).hexdigest()
        good &= found["format"] == "semseal-keyset-v1" and found["purpose"] == "link" and found["require"] in ("mix", None)
        good &= found["direction"] in ("one-way", "a-to-b", "b-to-a") and bool(re.fullmatch("[0-9a-f]{16}", found["link"]))
        good &= 1 <= len(keys) <= 64 and sum(key["state"] != "revoked" for key in keys) <= 4
        good &= sum(key["state"] == "primary" for key in keys) <= 1
        good &= len({key["id"] for key in keys}) == len(keys)
        for key in keys:
            good &= bool(re.fullmatch("[0-9a-f]{16}", key["id"]))
            dates = [key[name] for name in ("created", "not_before", "not_after")]
            good &= isinstance(key["created"], str)
            for date in dates:
                good &= date is None or time.strftime(DATE, time.strptime(date, DATE)) == date
            good &= key["state"] in ("primary", "accepted", "revoked") and (key["state"] == "revoked") == (
                key["secret"] is None
            )
            if key["secret"] is not None:
                coded, key["secret"] = key["secret"], base64.b64decode(key["secret"], validate=True)
                good &= base64.b64encode(key["secret"]).decode() == coded
                good &= len(key["secret"]) == 32 and len(set(key["secret"])) > 1
                good &= hkdf(key["secret"], b"semseal/v1/key-id")[:8].hex() == key["id"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"keyset: {error}") from None
    if not good:
        raise RefusedError("keyset")
    return found


def link_key(secret, direction):
    return hkdf(secret, b"semseal/v1/link/" + direction.encode())


# scheme index


@lru_cache
def scheme_sets(key, h):
    """P [256][h] and S [256][h // 2]."""

    def words(label):
        stream, block = hkdf(key, label), 0
        while True:
            yield from struct.unpack("<16I", key_stream(stream, bytes(12), block, 64))
            block += 1

    def below(source, n):
        while (w := next(source)) >= 2**32 - 2**32 % n:
            pass
        return w % n

    def shuffle(source):
        out = list(range(h))
        for i in range(h - 1, 0, -1):
            j = below(source, i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    of_p, of_s = words(b"semseal/v1/permutation-set"), words(b"semseal/v1/substitution-set")
    return [shuffle(of_p) for _ in range(256)], [shuffle(of_s)[: h // 2] for _ in range(256)]


def selection(key, h, header):
    """The order of the rows and those that are exchanged."""
    order, exchanged = list(range(h)), []
    if "permute" in header["mode"]:
        order = scheme_sets(key, h)[0][header["p"]]
    if "substitute" in header["mode"]:
        exchanged = scheme_sets(key, h)[1][header["s"]]
    return order, set(exchanged)


# graphs


def tensors(model, graph):
    """What a graph takes and gives: (name, type, shape) of each input in order, and of the output; axes that vary by name."""
    height, width, h, c = (model[name] for name in ("height", "width", "h", "c"))
    n = h * model["w"] * c
    side, *kinds = graph.split("-")
    told = [("snr_db", "float32", ["batch"])] if side == "transmitter" else [("side_information", "float32", ["batch", 3])]
    told = told if "scale" in model else []
    picture = ("image", "float32", ["batch", 3, height, width])
    if "pixels" in kinds:
        picture = ("pixels", "uint8", ["batch", height + (side == "receiver"), width, 3])
    if "mix" not in kinds:
        index = [("index", "int32", ["batch", h]), *told]
        if side == "transmitter":
            return [picture, *index], ("symbols", "float32", ["batch", n // 2, 2])
        return [("symbols", "float32", ["frames", n // 2, 2]), *index], picture
    a, b, c = mix_sizes(n)
    keys = [("mix_column_signs", "int8", ["batch", c, 1])]
    keys += [(f"mix_signs{k}", "int8", ["batch", a * b, c]) for k in range(5)]
    keys += [("mix_rows", "int32", ["batch", a * b]), ("mix_columns", "int32", ["batch", c])]
    symbols = ("symbols", "float32", ["batch", a * b * c // 2, 2])
    if side == "transmitter":
        return [picture, *told, ("mix_pads", "float32", ["batch", a * b * c - n]), *keys], symbols
    return [symbols, *told, *keys], picture


# bundle


def verify(line, manifest, signature):
    found = re.fullmatch("semseal-owner-v1:([A-Za-z0-9_-]{43})", line)
    if found is None:
        raise RefusedError("owner's line")
    public = base64.urlsafe_b64decode(found[1] + "=")
    if base64.urlsafe_b64encode(public).decode() != found[1] + "=":
        raise RefusedError("owner's line")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, b"semseal/v1/bundle\0" + manifest)
    except InvalidSignature:
        raise RefusedError("signature") from None


def read_manifest(text):
    """text: bytes that were verified"""

    def once(members):
        if len(dict(members)) != len(members):
            raise ValueError("a name twice")
        return dict(members)

    def is_size(value, largest, smallest=1):
        return type(value) is int and smallest <= value <= largest

    def is_digest(value):
        return isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value))

    try:
        manifest = json.loads(text.decode(), object_pairs_hook=once)
        model, files = manifest["model"], manifest["files"]
        low, high = snrs = manifest["snr_db"]
        good = isinstance(snrs, list) and all(type(snr) in (int, float) for snr in snrs)
        good &= type(manifest["format"]) is int and manifest["format"] == 5
        good &= all(is_size(model[name], 2**20) for name in ("height", "width", "h", "w", "c"))
        good &= model["h"] * model["w"] * model["c"] % 2 == 0 and model.get("scale", "header") == "header"
        name = r"(transmitter|receiver)(\.[a-z0-9]+\.onnx)|engines/(transmitter|receiver)(-mix)?(-pixels)?" + (
            r"\.[a-z0-9]+\.[a-z0-9][a-z0-9_-]*\.engine(\.json)?"
        )
        for file, entry in files.items():
            good &= bool(re.fullmatch(name, file)) and is_digest(entry["sha256"]) and is_size(entry["size"], 2**30, 0)
        both = b"".join(bytes.fromhex(files[f"{side}.fp32.onnx"]["sha256"]) for side in ("transmitter", "receiver"))
        good &= model["digest"] == hashlib.sha256(both).hexdigest()
        names = manifest["precisions"]
        good &= isinstance(names, list) and all(isinstance(name, str) for name in names) and "fp32" in names
        good &= math.isfinite(low) and math.isfinite(high) and low <= high
        good &= is_size(manifest.get("created", 0), 2**33 - 1, 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"manifest: {error}") from None
    if not good:
        raise RefusedError("manifest")
    return manifest


class Bundle:
    def __init__(self, folder, line=None):
        """line: the owner's; None for a bundle that is trusted as it is"""
        self.folder = Path(folder)
        text = (self.folder / "manifest.json").read_bytes()
        if line is not None:
            verify(line, text, (self.folder / "signature").read_bytes())
        self.manifest = read_manifest(text)
        self.model = self.manifest["model"]
        self.has_scale = "scale" in self.model
        self.h, self.c = self.model["h"], self.model["c"]
        self.n = self.h * self.model["w"] * self.c
        self.digest = bytes.fromhex(self.model["digest"])

    def read(self, name):
        entry = self.manifest["files"][name]
        data = (self.folder / name).read_bytes()
        if len(data) != entry["size"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise RefusedError(f"digest of {name}")
        return data


# the link


class Client:
    """Both ends, with the modes outside of the graphs. ``key``: K, 32 bytes, or None; ``keyset``: whether it is of one."""

    def __init__(self, bundle, key=None, precision="fp32", snr_db=None, keyset=False):
        self.bundle, self.key, self.keyset = bundle, key, keyset
        self.session, self.counter, self.seen = secrets.token_bytes(16), 0, {}
        if keyset:
            self.session = struct.pack("<I", int(time.time())) + self.session[4:]
        low, high = bundle.manifest["snr_db"]
        self.snr_db = snr_code((low + high) / 2 if snr_db is None else snr_db) / 4 - 32
        self.alice, self.bob = (
            onnxruntime.InferenceSession(bundle.read(f"{side}.{precision}.onnx"), providers=["CPUExecutionProvider"])
            for side in ("transmitter", "receiver")
        )

    def send(self, images, mode):
        """Images [batch, 3, height, width] in 0..1 to frames, as bytes."""
        bundle, h, batch = self.bundle, self.bundle.h, len(images)
        self.counter += self.counter % 2
        if self.keyset:
            self.session = self.session[:8] + secrets.token_bytes(8)
        feeds = {"image": images.astype(np.float32), "index": np.arange(batch * h, dtype=np.int32).reshape(batch, h)}
        if bundle.has_scale:
            feeds["snr_db"] = np.full(batch, self.snr_db, np.float32)
        symbols = self.alice.run(["symbols"], feeds)[0].reshape(batch, -1)
        scales = [None] * batch
        if bundle.has_scale:
            power = np.square(symbols, dtype=np.float64).sum(1) / (bundle.n / 2)
            scales = np.where(power < 1e-12, 1e6, 1 / np.sqrt(np.maximum(power, 1e-12))).tolist()
            symbols = symbols * np.array(scales, np.float32)[:, None]
        headers = [{"mode": mode, "counter": self.counter + i, "scale": scale} for i, scale in enumerate(scales)]
        if mode == "mix":
            for i, header in enumerate(headers):
                on_air, factor = mixed(symbols[i], mix_keys(self.key, self.session, header["counter"], bundle.digest, bundle.n))
                header["scale"] = header["scale"] and header["scale"] * factor
                header["symbols"] = on_air
        else:
            rows = list(symbols.reshape(batch, h, -1))
            if "substitute" in mode and batch % 2:
                noise = np.random.Generator(np.random.PCG64(secrets.randbits(128))).normal(0, math.sqrt(0.5), rows[0].shape)
                rows.append((noise * math.sqrt(noise.size / 2 / np.square(noise).sum())).astype(np.float32))
                headers.append({"mode": mode, "counter": self.counter + batch, "scale": None, "noise": True})
            for i, header in enumerate(headers):
                header["p"] = secrets.randbelow(256) if "permute" in mode else 0
                header["s"] = 0 if "substitute" not in mode else headers[i - 1]["s"] if i % 2 else secrets.randbelow(256)
            chosen = [selection(self.key, h, header) for header in headers]
            for i, (order, exchanged) in enumerate(chosen):
                headers[i]["symbols"] = np.stack(
                    [rows[i ^ 1][chosen[i ^ 1][0][r]] if r in exchanged else rows[i][order[r]] for r in range(h)]
                )
        self.counter += len(headers)
        frames = []
        for header in headers:
            on_air = header.pop("symbols").reshape(-1, 2)
            snr_db = self.snr_db if bundle.has_scale else -32.0
            sealed = seal_header(self.key, bundle.digest, session=self.session, snr_db=snr_db, **header)
            frames.append(write_frame(sealed, on_air))
        return frames

    def receive(self, frames):
        """Frames, as bytes, to the image of each, or None for a noise tensor."""
        opened = []
        for frame in frames:
            data, symbols = read_frame(frame)
            header = open_header(self.key, self.bundle.digest, data)
            a, b, c = mix_sizes(self.bundle.n)
            if len(symbols) != (a * b * c if header["mode"] == "mix" else self.bundle.n) // 2:
                raise RefusedError("number of symbols")
            if not np.square(symbols, dtype=np.float64).sum() <= 1000 * len(symbols):
                raise RefusedError("power")
            if self.bundle.has_scale and header["scale"] is None and not header["noise"]:
                raise RefusedError("no scale")
            opened.append((header, symbols))
        taken = {(header["session"], header["counter"]): symbols for header, symbols in opened}
        images = [self._decoded(header, symbols, taken) for header, symbols in opened]
        if self.key is not None:
            for header, _ in opened:
                self._once(header)
        return images

    def _once(self, header):
        seen = self.seen.setdefault(header["session"][: 8 if self.keyset else 16], set())
        if header["counter"] in seen or header["counter"] <= max(seen, default=-1) - WINDOW:
            raise RefusedError("replay")
        seen.add(header["counter"])

    def _decoded(self, header, symbols, taken):
        bundle, h = self.bundle, self.bundle.h
        if header["noise"]:
            return None
        frames = [symbols]
        if header["mode"] == "mix":
            keys = mix_keys(self.key, header["session"], header["counter"], bundle.digest, bundle.n)
            reals = unmixed(symbols.ravel(), keys, bundle.n)
            if not looks_like_features(reals, bundle.c):
                raise RefusedError("symbols of another key, counter or model")
        else:
            order, exchanged = selection(self.key, h, header)
            partner = taken.get((header["session"], header["counter"] ^ 1))
            if exchanged and partner is not None:
                frames.append(partner)
            nothing = np.zeros_like(symbols)
            rows = [each.reshape(h, -1) for each in (symbols, nothing if partner is None else partner)]
            reals = np.empty_like(rows[0])
            for i in range(h):
                reals[order[i]] = rows[i in exchanged][i]
        feeds = {"symbols": reals.reshape(1, -1, 2), "index": np.arange(h, dtype=np.int32)[None]}
        if bundle.has_scale:
            power = np.mean([np.square(frame, dtype=np.float64).sum() / len(frame) for frame in frames])
            feeds["side_information"] = np.array([[header["scale"], max(power - 1, 1e-4), header["snr_db"]]], np.float32)
        return self.bob.run(["image"], feeds)[0][0]

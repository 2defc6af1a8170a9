"""Ask a Triton server for a link's symbols and pictures: python benchmarks/on_triton.py edge --url 127.0.0.1:8000

The server has the repository that ``semseal export BUNDLE --triton DIR`` wrote, or --server starts one with it. Its answers are
compared with the link on onnxruntime-cpu, under the same keys:

    symbols     of pictures that several clients send at once, so that the server batches them
    neighbours  a client whose index points outside of its own picture: nobody's answer may change by it
    pictures    of frames that a Transmitter sent; and the server's symbols, sealed here, through a Receiver

Ends with a line of JSON; exits with 1 where something differs.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from socket import gethostbyname
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import click
import numpy as np
from numpy.typing import NDArray
from semseal.export.triton import write_repository
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.channel import awgn, draw_noise
from semseal.runtime.defense import mix
from semseal.runtime.defense.header import Header, HeaderSealer, new_session
from semseal.runtime.engine import open_engine
from semseal.runtime.link import Frame, Receiver, Transmitter
from semseal.runtime.pictures import open_pictures

Array = NDArray[Any]
CLIENTS = 8
SNR_DB = 20.0
TOLERANCE = 1e-4  # of symbols of power 1, and of pictures in 0..1
TYPES = {"float32": "FP32", "int8": "INT8", "int32": "INT32", "uint8": "UINT8"}
KEY = bytes(range(32))


class Model:
    """One model of a server, by the KServe protocol with binary tensors."""

    def __init__(self, url: str, name: str) -> None:
        self._at = f"http://{url}/v2/models/{name}"
        self.config = json.loads(_answer(f"{self._at}/config"))
        self.shapes = {value["name"]: value["dims"] for value in self.config["input"]}
        self.output = self.config["output"][0]["name"]

    def __call__(self, **inputs: Array) -> Array:
        feeds = {name: array.reshape(len(array), *map(int, self.shapes[name])) for name, array in inputs.items()}
        data = [np.ascontiguousarray(array).tobytes() for array in feeds.values()]
        described = [
            {
                "name": name,
                "shape": array.shape,
                "datatype": TYPES[array.dtype.name],
                "parameters": {"binary_data_size": len(part)},
            }
            for (name, array), part in zip(feeds.items(), data, strict=True)
        ]
        asked = json.dumps(
            {"inputs": described, "outputs": [{"name": self.output, "parameters": {"binary_data": True}}]}
        ).encode()
        request = Request(f"{self._at}/infer", asked + b"".join(data), {"Inference-Header-Content-Length": str(len(asked))})
        with urlopen(request, timeout=60) as answer:
            size, body = int(answer.headers["Inference-Header-Content-Length"]), answer.read()
        found = json.loads(body[:size])["outputs"][0]
        dtype = next(name for name, kind in TYPES.items() if kind == found["datatype"])
        return np.frombuffer(body[size:], dtype).reshape(found["shape"])

    def digest(self, version: int) -> str:
        return str(self.config["parameters"][f"semseal_digest_{version}"]["string_value"])

    def largest_batch(self) -> int:
        stats = json.loads(_answer(f"{self._at}/stats"))["model_stats"][-1]
        return max(int(batch["batch_size"]) for batch in stats["batch_stats"])


def _answer(url: str) -> bytes:
    with urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


@contextmanager
def serving(bundle: Bundle, server: str | None, backends: str | None, url: str) -> Iterator[None]:
    """A server of our own with the bundle's repository, until the end; none if no program is named."""
    if server is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        write_repository(bundle, Path(folder) / "models")
        host, port = url.split(":")
        command = [server, f"--model-repository={folder}/models", "--http-address", gethostbyname(host), "--http-port", port]
        command += ["--allow-grpc=false", "--allow-metrics=false", "--exit-timeout-secs=3", "--disable-auto-complete-config"]
        process = subprocess.Popen([*command, *([] if backends is None else [f"--backend-directory={backends}"])])
        try:
            _wait(url, process)
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(120):
        try:
            _answer(f"http://{url}/v2/health/ready")
            return
        except (URLError, OSError):
            if process.poll() is not None:
                sys.exit("the server ended")
            time.sleep(0.5)
    sys.exit(f"the server does not answer at {url}")


def inputs_of(keys: mix.MixKeys, n: int, side: str) -> dict[str, Array]:
    """The keys of one image as the served graphs take them: ``mix_rows`` counts its own rows."""
    names = ["mix_column_signs", *(f"mix_signs{k}" for k in range(mix.LAYERS)), "mix_rows", "mix_columns"]
    if side == "transmitter":
        return dict(zip(["mix_pads", *names], mix.transmitter_inputs(keys, n), strict=True))
    return dict(zip(names, mix.receiver_inputs(keys, n), strict=True))


@click.command()
@click.argument("bundle", default="edge")
@click.option("--url", default="127.0.0.1:8000", show_default=True, help="host and port of the server's HTTP")
@click.option("--server", help="start this tritonserver there, with the bundle's repository")
@click.option("--backends", help="its --backend-directory")
def main(bundle: str, url: str, server: str | None, backends: str | None) -> None:
    opened = open_bundle(bundle)
    with serving(opened, server, backends, url):
        found = ask(opened, url)
    click.echo(json.dumps(found))
    sys.exit(not found["same"])


def ask(bundle: Bundle, url: str) -> dict[str, Any]:
    name, n = bundle.path.name, 2 * bundle.n_symbols
    alice, bob = (Model(url, f"{name}-{side}-mix-fp32") for side in ("transmitter", "receiver"))
    assert alice.digest(1) == bob.digest(1) == bundle.digest.hex()
    images = open_pictures("photos", "valid").take(CLIENTS, bundle.height, bundle.width)
    session = new_session()
    told = {"snr_db": np.full(1, bundle.snr_db, np.float32)} if bundle.has_scale else {}
    keys = [mix.derive_keys(KEY, session, [k], bundle.digest, n) for k in range(CLIENTS)]
    feeds = [{"image": images[k : k + 1], **told, **inputs_of(keys[k], n, "transmitter")} for k in range(CLIENTS)]
    plain = open_engine("onnxruntime-cpu", bundle.graph("transmitter-mix"))
    ours = [mix.normalize(plain(*feed.values())) for feed in feeds]

    def symbols(feed: dict[str, Array]) -> tuple[Array, Array]:
        return mix.normalize(alice(**feed).copy())

    with ThreadPoolExecutor(CLIENTS) as clients:
        theirs = list(clients.map(symbols, feeds * 4))
        hostile = {**feeds[0], "mix_rows": feeds[0]["mix_rows"] + np.int32(3 * feeds[0]["mix_rows"].size)}
        disturbed = list(clients.map(symbols, [hostile, *feeds[1:]] * 4))
    found: dict[str, Any] = {
        "largest_batch": alice.largest_batch(),
        "symbols": max(_difference(theirs[i][0], ours[i % CLIENTS][0]) for i in range(len(theirs))),
        "neighbours": max(_difference(disturbed[i][0], ours[i % CLIENTS][0]) for i in range(len(disturbed))),
        "sealed_here": _difference(*(received(bundle, session, given) for given in (theirs[:CLIENTS], ours))),
        "pictures": pictures(bundle, bob, images),
        "ms": {"triton": _median_ms(lambda: symbols(feeds[0])), "here": _median_ms(lambda: plain(*feeds[0].values()))},
    }
    found["same"] = all(found[what] < TOLERANCE for what in ("symbols", "neighbours", "sealed_here", "pictures"))
    return found


def received(bundle: Bundle, session: bytes, given: list[tuple[Array, Array]]) -> Array:
    """What a Receiver makes of symbols whose headers are sealed here."""
    sealer, frames = HeaderSealer(KEY, bundle.digest), []
    for counter, (symbols, scale) in enumerate(given):
        told = {"scale": float(scale[0]), "snr_db": bundle.snr_db} if bundle.has_scale else {}
        frames.append(Frame(symbols.reshape(-1).view(np.complex64), sealer.seal(Header("mix", session, counter, **told))))
    return Receiver(bundle.name, key=KEY).receive(frames)


def pictures(bundle: Bundle, bob: Model, images: Array) -> float:
    """How far the server's pictures of a Transmitter's frames are from a Receiver's."""
    sealer, given, n = HeaderSealer(KEY, bundle.digest), [], 2 * bundle.n_symbols
    sent = Transmitter(bundle.name, key=KEY, defense="mix").send(images[:2])
    noise = draw_noise(2, len(sent[0].symbols), np.random.default_rng(0))
    sent = [Frame(awgn(frame.symbols, noise[i], SNR_DB), frame.header) for i, frame in enumerate(sent)]
    for frame in sent:
        header = sealer.open(frame.header)
        keys = mix.derive_keys(KEY, header.session, [header.counter], bundle.digest, n)
        side = np.array([[header.scale or 1.0, 10 ** (-SNR_DB / 10), header.snr_db]], np.float32)
        told = {"side_information": side} if bundle.has_scale else {}
        air = frame.symbols.view(np.float32).reshape(1, -1, 2)
        given.append(bob(symbols=air, **told, **inputs_of(keys, n, "receiver"))[0])
    here = Receiver(bundle.name, key=KEY, snr_db=SNR_DB if bundle.has_scale else None).receive(sent)
    return _difference(np.stack(given), here)


def _difference(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max())


def _median_ms(call: Any) -> float:
    times = []
    for _ in range(30):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times), 2)


if __name__ == "__main__":
    try:
        main()
    except (HTTPError, URLError) as error:
        sys.exit(f"the server says: {error} {error.read().decode() if isinstance(error, HTTPError) else ''}")

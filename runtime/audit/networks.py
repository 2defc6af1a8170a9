"""Trained models of pictures that several cells of an audit share: trained by the first that needs one, then read from a file.

The name of a file holds the digest of everything that the weights depend on, so that no cell ever takes another's. A process
that needs one which another is training waits for it; where the file system knows no locks, or the folder cannot be made, it
trains its own, which is the same to the bit on the same kind of machine. A file is whole or not there: a training that was
interrupted begins again.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from semseal.runtime.attacks.accelerator import best_device
from semseal.runtime.attacks.flow import Flow
from semseal.runtime.audit.code import digest_of_code
from semseal.runtime.errors import AuditError
from semseal.runtime.files import write_atomically
from torch import Tensor

MAX_HELD = 3  # in memory, of one process
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

_held: dict[str, Flow] = {}


def trained(
    folder: Path | None, name: str, depends: dict[str, Any], new: Callable[[], Flow], train: Callable[[Flow], Any]
) -> Flow:
    """``new`` after ``train``, or as another cell has left it in ``folder``; None: it is kept in memory alone.

    ``depends`` is what the weights depend on, besides the code, the version of PyTorch and the device. Raises AuditError for a
    damaged file.
    """
    device = best_device()
    of_machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    everything = {
        **depends,
        "code": digest_of_code("semseal.runtime.attacks.flow"),
        "torch": torch.__version__,
        "device": of_machine,
    }
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    if digest not in _held:
        flow = _from_file(folder, f"{name}-{digest[:16]}", new, train)
        while len(_held) >= MAX_HELD:
            del _held[next(iter(_held))]
        # read or trained, the weights lie in memory alike: convolutions then add in the same order
        _held[digest] = flow.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return _held[digest]


def _from_file(folder: Path | None, name: str, new: Callable[[], Flow], train: Callable[[Flow], Any]) -> Flow:
    flow = new()
    if folder is None or not _made(folder):
        train(flow)
        return flow
    file = folder / f"{name}.safetensors"
    with _locked(folder / f"{name}.lock"):
        if file.exists():
            _read(flow, file)
        else:
            train(flow)
            _write(flow, file)
    return flow


def _made(folder: Path) -> bool:
    """Whether the folder is there; a machine of a cluster need not share it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of one that dies is free."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)


def _write(flow: Flow, file: Path) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in flow.state_dict().items()}
    write_atomically(file, save(tensors, {"sha256": _digest(tensors)}))


def _read(flow: Flow, file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as kept:
            tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
            expected = (kept.metadata() or {}).get("sha256")
        if _digest(tensors) == expected:
            flow.load_state_dict(tensors)
            return
    except (SafetensorError, RuntimeError, ValueError):
        pass
    raise AuditError(f"{file} is damaged", "delete it, and the same command trains it again")


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(str(tuple(tensors[name].shape)).encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()

"""One link in a process of its own: python -c SOURCE JSON. It answers each line on its input with one line of JSON.

It uses the public names of semseal only, so that it runs with the version of any environment, older ones too.

    ready      versions, seconds to import, to load and for the first call, PSNR of what came through, memory
    send       seconds of one send; so receive, whose frames are new each time, and link
    sends N    resident bytes after N more sends
    memory     peak and resident bytes
"""

import json
import sys
import time
from typing import Any


def _memory() -> dict[str, int]:
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {"peak": int(fields["VmHWM"].split()[0]) * 1024, "resident": int(fields["VmRSS"].split()[0]) * 1024}


def main(asked: dict[str, Any]) -> None:
    clock = time.perf_counter
    started = clock()
    import numpy as np
    import semseal

    imported = clock()
    link = {"key": bytes(range(32)) if asked["defense"] != "none" else None, "engine": asked["engine"]}
    link |= {"precision": asked["precision"], "threads": asked["threads"], "owner": asked["owner"]}
    alice = semseal.Transmitter(asked["bundle"], defense=asked["defense"], **link)
    bob = semseal.Receiver(asked["bundle"], **link)
    loaded = clock()
    y, x = np.mgrid[0 : alice.bundle.height, 0 : alice.bundle.width] / min(alice.bundle.height, alice.bundle.width)
    phases = np.arange(3 * asked["batch"])[:, None, None]
    waves = 0.5 + 0.4 * np.sin(3 * x + phases) * np.cos(2 * y - phases)
    images = waves.astype(np.float32).reshape(asked["batch"], 3, *x.shape)
    before = clock()
    answer = bob.receive(alice.send(images))
    first = clock() - before
    psnr = -10 * np.log10(np.square(answer - images, dtype=np.float64).mean())

    def seconds(stage: str) -> float:
        begun = clock()
        frames = alice.send(images)
        sent = clock()
        if stage == "send":
            return sent - begun
        bob.receive(frames)
        return clock() - (sent if stage == "receive" else begun)

    def say(answer: Any) -> None:
        print(json.dumps(answer), flush=True)

    say({"version": semseal.__version__, "file": semseal.__file__, "import_s": imported - started, "load_s": loaded - imported,
         "first_call_s": first, "psnr_db": float(psnr), "digest": alice.bundle.digest.hex(), **_memory()})  # fmt: skip
    for line in sys.stdin:
        command, _, count = line.strip().partition(" ")
        if command == "memory":
            say(_memory())
        elif command == "sends":
            for _ in range(int(count)):
                alice.send(images)
            say(_memory())
        else:
            say(seconds(command))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

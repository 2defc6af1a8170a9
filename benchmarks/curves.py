"""Quality over SNR as a picture."""

from pathlib import Path
from typing import Any

MEASURES = {"psnr": "PSNR in dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}
_COLOURS = {"jpeg": "tab:red", "webp": "tab:orange", "avif": "tab:purple"}


def draw(rows: list[dict[str, Any]], set_: str, n: int, ratio: float, path: Path) -> None:
    """Curves of ``quality.Row`` as dicts: analog contenders, and every digital link with its cliff."""
    from matplotlib.figure import Figure

    shown = [name for name in MEASURES if all(row[name] is not None for row in rows)]
    figure = Figure(figsize=(5.2 * len(shown), 4.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for contender in dict.fromkeys(row["contender"] for row in rows):
            own = sorted((row for row in rows if row["contender"] == contender), key=lambda row: row["snr_db"])
            colour = _COLOURS.get(contender)
            for design in dict.fromkeys(row["design_db"] for row in own):
                link = [row for row in own if row["design_db"] == design]
                at, values = [row["snr_db"] for row in link], [row[name]["value"] for row in link]
                if design is None:
                    axes.plot(at, values, marker="o", markersize=3, label=contender)
                else:
                    axes.plot(at, values, color=colour, linewidth=0.7, alpha=0.45)
            best = [row for row in own if row["design_db"] == row["snr_db"]]
            if best:
                at, values = [row["snr_db"] for row in best], [row[name]["value"] for row in best]
                axes.plot(at, values, "s--", color=colour, markersize=4, label=f"{contender} + LDPC, a link for each SNR")
        axes.set_xlabel("SNR in dB")
        axes.set_ylabel(MEASURES[name])
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(f"{set_}: {n} pictures, bandwidth ratio 1/{1 / ratio:g}; thin lines: each digital link away from its SNR")
    figure.savefig(path, dpi=100, metadata={"Software": None})

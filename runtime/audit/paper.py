"""The figures of the paper's Tables I to IV, mean PSNR in dB and SSIM, to be printed beside ours.

The paper says neither on how many pictures they were measured nor which SSIM is meant.
"""

SNRS = (0, 10, 20)

# main SNR in dB -> PSNR, SSIM
BOB: dict[float, tuple[float, float]] = {0: (30.02, 0.70), 10: (32.28, 0.79), 20: (33.28, 0.80)}

# defence -> a row for each of Eve's SNRs, a column for each main SNR
_WHITE_BOX = {
    "none": "17.44/.31 16.69/.30 18.58/.32  18.58/.40 17.80/.40 20.56/.43  18.74/.43 17.94/.42 20.84/.46",
    "permute+substitute": "8.03/.02 8.74/.02 6.94/.00  8.55/.04 7.70/-.01 9.07/.05  8.02/.03 13.31/.09 8.39/.02",
    "permute": "8.05/.02 8.73/.06 8.50/.02  8.32/.06 8.02/.03 8.87/.01  8.36/.04 8.05/.02 8.77/.07",
    "substitute": "8.99/.14 8.91/.10 15.80/.16  15.62/.19 9.16/.14 10.43/.16  12.68/.18 15.35/.18 16.13/.21",
}
_BLACK_BOX = {
    "none": "21.65/.46 22.24/.46 22.85/.46  23.50/.53 23.76/.54 24.33/.56  23.88/.57 23.98/.59 24.41/.61",
    "permute+substitute": "11.36/.11 11.41/.07 12.51/.07  11.72/.16 11.34/.11 13.22/.13  12.59/.21 11.55/.10 11.54/.07",
    "permute": "14.00/.22 11.43/.10 13.25/.13  14.55/.26 12.97/.19 13.19/.12  14.97/.28 12.83/.18 12.83/.13",
    "substitute": "16.06/.28 15.00/.25 14.70/.20  14.68/.26 14.49/.26 15.80/.27  15.78/.30 14.53/.27 17.29/.28",
}

# defence -> (table, figure) of the paper
TABLES = {"none": ("I", 3), "permute+substitute": ("II", 4), "permute": ("III", 5), "substitute": ("IV", 6)}


def eve(attack: str, defense: str, eve_snr: float, main_snr: float) -> tuple[float, float] | None:
    """PSNR and SSIM that the paper gives for ``white-box`` or ``black-box``; None where it gives none."""
    table = {"white-box": _WHITE_BOX, "black-box": _BLACK_BOX}[attack].get(defense)
    if table is None or eve_snr not in SNRS or main_snr not in SNRS:
        return None
    entry = table.split()[3 * SNRS.index(int(eve_snr)) + SNRS.index(int(main_snr))]
    psnr, ssim = entry.split("/")
    return float(psnr), float(ssim)

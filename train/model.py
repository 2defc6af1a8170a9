"""DeepJSCC: the link that is trained.

E. Bourtsoulatze, D. B. Kurka, D. Gunduz, "Deep Joint Source-Channel Coding for Wireless Image Transmission",
IEEE Transactions on Cognitive Communications and Networking 5(3), 2019; with the layer counts of the MIEA paper, section IV.

    x ── semantic_encoder ── z ── channel_encoder ── y_f ── to_rows ── normalize_power ── to_symbols ── y
         4 convolutions           1 convolution                                                         │
                                                                                                     channel
                                                                                                        │
    x̂ ── semantic_decoder ── ẑ ── channel_decoder ── ŷ_f ── from_symbols ───────────────────────────── ŷ
         4 transposed             1 transposed
"""

from collections.abc import Callable

import torch
from semseal.train.config import ModelConfig
from torch import Tensor, nn


def normalize_power(rows: Tensor) -> Tensor:
    """Scale every image's rows [batch, h, w*c] so that a complex symbol (two neighbours) has mean power 1."""
    power = 2 * rows.square().mean(dim=(1, 2), keepdim=True)
    return rows * torch.rsqrt(power.clamp_min(1e-20))  # an all-zero image stays zero


class DeepJSCC(nn.Module):
    """Transmitter and receiver: images float32 [batch, 3, height, width] in 0..1 to symbols [batch, N, 2] and back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.semantic_encoder = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.PReLU(16),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.PReLU(32),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.PReLU(32),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.PReLU(32),
        )
        self.channel_encoder = nn.Conv2d(32, config.c, 5, padding=2)
        self.channel_decoder = nn.Sequential(nn.ConvTranspose2d(config.c, 32, 5, padding=2), nn.PReLU(32))
        self.semantic_decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 32, 5, padding=2),
            nn.PReLU(32),
            nn.ConvTranspose2d(32, 32, 5, padding=2),
            nn.PReLU(32),
            nn.ConvTranspose2d(32, 16, 5, stride=2, padding=2, output_padding=1),
            nn.PReLU(16),
            nn.ConvTranspose2d(16, 3, 5, stride=2, padding=2, output_padding=1),
            nn.Sigmoid(),
        )

    def encode_rows(self, x: Tensor) -> Tensor:
        """Images to unit-power rows [batch, h, w*c], channel fastest: the paper's row i is one contiguous run."""
        features = self.channel_encoder(self.semantic_encoder(x))  # [batch, c, h, w]
        rows = features.float().permute(0, 2, 3, 1).flatten(2)
        return normalize_power(rows)

    def decode_rows(self, rows: Tensor) -> Tensor:
        """Rows [batch, h, w*c] to images [batch, 3, height, width] in 0..1."""
        features = rows.unflatten(2, (self.config.w, self.config.c)).permute(0, 3, 1, 2)
        return self.semantic_decoder(self.channel_decoder(features))

    def encode(self, x: Tensor) -> Tensor:
        """Images to symbols [batch, N, 2], mean power 1 per complex symbol and image."""
        return self.encode_rows(x).reshape(x.shape[0], self.config.n_symbols, 2)

    def decode(self, symbols: Tensor) -> Tensor:
        """Symbols [batch, N, 2], as received and equalised, to images in 0..1."""
        return self.decode_rows(symbols.reshape(symbols.shape[0], self.config.h, self.config.w * self.config.c))

    def forward(self, x: Tensor, channel: Callable[[Tensor], Tensor]) -> Tensor:
        """The whole link: images, through ``channel`` (symbols [batch, N, 2] in float32 to the same), to images."""
        return self.decode(channel(self.encode(x)))

from semseal.export.pack.pack import pack
from semseal.export.pack.pair import Packed, pack_graphs

__all__ = ["Packed", "pack", "pack_graphs"]

from semseal.export.pack.pack import Packed, pack, pack_graphs

__all__ = ["Packed", "pack", "pack_graphs"]

"""lvsxdp: Linux Virtual Server semantics at XDP speed."""

__version__ = "0.1.0"

"""What a registry lies on: a file system, or a bucket of an object store. `port` says what each of them has to do."""

from acemath_registry.stores.address import place_of
from acemath_registry.stores.disk import DISK, Disk
from acemath_registry.stores.port import Change, Leftover, Overtaken, Store

__all__ = ["DISK", "Change", "Disk", "Leftover", "Overtaken", "Store", "place_of"]

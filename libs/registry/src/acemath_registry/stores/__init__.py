"""What a registry lies on: a file system, or a bucket of an object store. `port` says what each of them has to do."""

from acemath_registry.stores.address import SCHEME, is_object_address, place_of
from acemath_registry.stores.disk import DISK, Disk
from acemath_registry.stores.port import Change, Overtaken, Store

__all__ = ["DISK", "SCHEME", "Change", "Disk", "Overtaken", "Store", "is_object_address", "place_of"]

from __future__ import annotations

from hypothesis import settings

# A busy machine makes single examples slow.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

"""What notebooks show: panels, one file each in the folder `panels`."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["panels"])

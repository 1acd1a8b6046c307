"""Where the files lie that are no Python: config/, urdf/, launch/."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = "molmoact2_ros"


def share_path(relative: str) -> Path:
    """Return a file of the package's share directory, such as `config/so101.yaml`.

    The source tree comes first (nothing needs to be installed to work on it), then every prefix of AMENT_PREFIX_PATH,
    then this Python's own prefix.

    Raises:
        FileNotFoundError: none of them has it; the message lists the places.
    """
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    source = Path(__file__).parent.parent
    places = [source / relative] if (source / "package.xml").is_file() else []
    places += [Path(prefix) / "share" / PACKAGE / relative for prefix in prefixes]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f"{relative} of {PACKAGE} is in none of {', '.join(map(str, places))}; is it installed?")


def bundled_checkpoint(family: str) -> Path:
    """Directory where the small checkpoint of a family's simulated cell is, for those that have one."""
    return Path(__file__).parent / "data" / f"{family}_cell"

"""What the recorder's services wait for and say. Everything else is heard and recorded meanwhile."""

from __future__ import annotations

import json
import time

from molmoact2_ros.nodes.ros.services import Pause
from molmoact2_ros.recording.episode_recorder import EpisodeRecorder, EpisodeWriter, Finished
from molmoact2_ros.recording.episodes import latest

WRITE_TIMEOUT_S = 30.0
"""How long the end of an episode may take before the caller is told that it is still being written."""
PAUSE_S = 0.002
LISTED = 12
"""How many episodes are listed for who asks."""


async def listed(episodes: EpisodeRecorder) -> str:
    """The last episodes, the newest first, as JSON: `Episode.summary` of each."""
    now = episodes.recording
    found = []
    for summary in latest(episodes.directory, LISTED, "" if now is None else now.name):
        found.append(summary)
        await Pause()  # a bag's metadata takes a while to read
    return json.dumps(found)


async def written(writer: EpisodeWriter) -> Finished:
    """How the episode ended, once it has.

    Raises:
        OSError: it is still being written after `WRITE_TIMEOUT_S`.
    """
    end = time.monotonic() + WRITE_TIMEOUT_S
    while writer.result is None:
        if time.monotonic() > end:
            raise OSError(f"{writer.path} is still being written; the log says when it is done")
        writer.join(PAUSE_S)
        await Pause()
    return writer.result

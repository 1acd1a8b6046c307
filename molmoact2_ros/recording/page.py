"""The episodes of a folder as one HTML page with a strip of images each. Self-contained: nothing is loaded."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.encodings import rgb_of_message
from molmoact2_ros.recording.episodes import Episode

STRIP = 8
WIDTH = 160
_STYLE = """
body { font: 14px/1.4 sans-serif; margin: 2em; color: #222; background: #fff; }
section { border-top: 1px solid #ccc; padding: 0.7em 0; }
h2 { font-size: 1em; margin: 0 0 0.3em; }
.bad { color: #b00020; } .good { color: #1b6e3c; } img { margin-right: 2px; } ul { margin: 0.2em 0; }
"""


def strip(episode: Episode, topic: str, count: int = STRIP) -> list[bytes]:
    """JPEG thumbnails of `count` images of `topic`, evenly over the episode; fewer where there are fewer.

    Raises:
        ValueError: the bag cannot be read.
    """
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    stream = episode.audit.get(topic, {})
    first, last = stream.get("first_ns"), stream.get("last_ns")
    if first is None or last is None:
        return []
    files = sorted(episode.path.glob("*.mcap"))
    if not files:
        raise ValueError(f"{episode.path}: no .mcap file")
    found: dict[int, bytes] = {}
    with files[0].open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        for moment in np.linspace(first, last, count).astype(np.int64):
            for *_, message, image in reader.iter_decoded_messages(topics=[topic], starting_at=int(moment)):
                if message.log_time not in found:
                    found[message.log_time] = _thumbnail(rgb_of_message(image))
                break
    return [found[time] for time in sorted(found)]


def _thumbnail(rgb: NDArray[np.uint8]) -> bytes:
    import cv2

    size = WIDTH, max(1, round(rgb.shape[0] * WIDTH / rgb.shape[1]))
    small = cv2.resize(np.ascontiguousarray(rgb[..., ::-1]), size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()


def page(episodes: Iterable[Episode], title: str) -> str:
    """The page of `episodes`; what cannot be shown of one is said in its place."""
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
    ]
    for episode in episodes:
        parts.append(_section(episode))
    return "\n".join([*parts, "</html>\n"])


def _section(episode: Episode) -> str:
    said = " · ".join(text for text in (f"{episode.length_s:.1f} s", episode.outcome, episode.mark) if text)
    colour = "bad" if episode.verdict or episode.mark == "bad" else "good"
    lines = [
        f"<section><h2 class='{colour}'>{html.escape(episode.path.name)} · {html.escape(said)}</h2>",
        f"<p>{html.escape(episode.task) or '<em>no task</em>'}</p>",
    ]
    if episode.verdict:
        lines.append(
            "<ul>" + "".join(f"<li class='bad'>{html.escape(line)}</li>" for line in episode.verdict) + "</ul>"
        )
    for topic in episode.image_topics:
        try:
            images = strip(episode, topic)
        except Exception as error:  # a damaged bag is to be seen on the page, not to end it
            lines.append(f"<p class='bad'>{html.escape(f'{topic}: {error}')}</p>")
            continue
        shown = "".join(
            f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'>" for data in images
        )
        lines.append(f"<div title='{html.escape(topic)}'>{shown}</div>")
    return "\n".join([*lines, "</section>"])

"""A film is H.264 in yuv420p, as long as the time that it shows, and can be played after any end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from molmoact2_ros.rendering.film import FilmWriter, write_still
from molmoact2_ros.rendering.montage import Caption, montage


def plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((48, 64, 3), colour, np.uint8)


def frames_of(path: Path) -> list[np.ndarray]:
    """Every frame of a film, RGB."""
    film = cv2.VideoCapture(str(path))
    found = []
    while (read := film.read())[0]:
        found.append(read[1][..., ::-1])
    return found


def test_pictures_last_until_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "film.mp4"
    film = FilmWriter(path, 64, 48, fps=10)
    for now_s, colour in ((100.0, (200, 0, 0)), (101.0, (0, 200, 0)), (101.5, (0, 0, 200))):
        film.add(plain(colour), now_s)
    assert film.close() and film.close(), film.error
    frames = frames_of(path)
    assert len(frames) == 16
    for index, colour in ((0, (200, 0, 0)), (9, (200, 0, 0)), (11, (0, 200, 0)), (15, (0, 0, 200))):
        assert np.abs(frames[index].reshape(-1, 3).mean(axis=0) - colour).max() < 12
    said = subprocess.run([get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr
    assert "h264" in said and "yuv420p" in said and "10 fps" in said


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
import numpy as np
from pathlib import Path
from molmoact2_ros.rendering.film import FilmWriter
film = FilmWriter(Path(sys.argv[1]), 64, 48, fps=10)
for i in range(10**6):
    film.add(np.full((48, 64, 3), i % 200, np.uint8), i * 0.1)
    if i == 30:
        while film.frames < 25:
            time.sleep(0.01)
        print("filmed", flush=True)
    time.sleep(0.005 if i < 30 else 1.0)
"""


def test_a_killed_film_can_be_played(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), root], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "filmed\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10.0
    while len(frames_of(path)) < 25:
        assert time.monotonic() < deadline, f"{path.stat().st_size} bytes"
        time.sleep(0.05)


def test_a_film_without_pictures_leaves_no_file(tmp_path: Path) -> None:
    film = FilmWriter(tmp_path / "film.mp4", 64, 48)
    assert film.close(), film.error
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even sides"):
        FilmWriter(tmp_path / "film.mp4", 63, 48)
    film = FilmWriter(tmp_path / "film.mp4", 64, 48)
    with pytest.raises(ValueError, match=r"\(48, 64, 3\)"):
        film.add(np.zeros((48, 65, 3), np.uint8), 0.0)
    film.close()


def test_an_encoder_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").mkdir()
    film = FilmWriter(tmp_path / "film.mp4", 64, 48)
    film.add(plain((1, 2, 3)), 0.0)
    assert not film.close()
    assert "film.mp4" in (film.error or "")


def test_stills_keep_their_colours(tmp_path: Path) -> None:
    write_still(plain((250, 120, 10)), tmp_path / "out" / "still.png")
    read = cv2.imread(str(tmp_path / "out" / "still.png"))
    assert read is not None
    assert tuple(read[0, 0, ::-1]) == (250, 120, 10)


def test_a_wide_picture_keeps_its_shape_and_panels_bear_the_cameras_names() -> None:
    wide = np.full((180, 320, 3), 200, np.uint8)
    canvas = montage(wide, None, None, None, Caption(cameras=("left", "right")))
    panel = canvas[40:280, 642:958]
    bright = (panel > 190).all(axis=2).mean(axis=1) > 0.5
    assert 170 <= bright.sum() <= 182, "a 16:9 picture in a 4:3 panel leaves bars above and below"
    assert not bright[:20].any() and not bright[-20:].any()
    named = montage(wide, None, None, None, Caption(cameras=("exterior", "wrist")))
    assert not np.array_equal(canvas, named)

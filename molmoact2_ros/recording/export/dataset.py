"""Writing with lerobot's own writer: one bag as a part, and the parts joined into one LeRobotDataset v3."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.recording.export.images import with_images
from molmoact2_ros.recording.export.moments import Frame, Plan, plan_of
from molmoact2_ros.recording.export.settings import ExportError, ExportOptions
from molmoact2_ros.recording.export.source import Source, Topics, topics_of

STATE, ACTION = "observation.state", "action"
OUTCOME, INTERVENTION = "outcome", "intervention"
PROVENANCE = Path("meta") / "molmoact2.json"
"""What was exported from which bags, and how; in the dataset, beside lerobot's own files."""
PART = "part.json"
REPOSITORY = "local/export"
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def image_key(view: str) -> str:
    """The feature of a view."""
    return f"observation.images.{view}"


def joint_features(options: ExportOptions) -> list[str]:
    """Names of the values of states and actions."""
    return [f"{name}.pos" for name in options.embodiment.joint_names]


def features(options: ExportOptions, views: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """lerobot's description of the columns; `views` are the images' shapes (height, width, 3)."""
    names = joint_features(options)
    vector = {"dtype": "float32", "shape": (len(names),), "names": names}
    kind = "video" if options.videos else "image"
    pictures = {
        image_key(view): {"dtype": kind, "shape": shape, "names": ["height", "width", "channels"]}
        for view, shape in views.items()
    }
    return {
        STATE: dict(vector),
        ACTION: dict(vector),
        **pictures,
        INTERVENTION: {"dtype": "bool", "shape": (1,), "names": None},
        OUTCOME: {"dtype": "string", "shape": (1,), "names": None},
    }


def views_of(topics: Topics, options: ExportOptions) -> dict[str, str]:
    """The camera of each view, in the order of the prompt: as chosen, else the robot's cameras, then the others."""
    if options.views:
        return dict(options.views)
    usual = options.embodiment.camera_names
    there = sorted(topics.cameras, key=lambda name: (usual.index(name) if name in usual else len(usual), name))
    return {name: name for name in there}


def vectors(frame: Frame, options: ExportOptions) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """State and action (dof,) of a frame as the model is given them."""
    robot, kind = options.embodiment, options.model_frame
    state = robot.model_from_joints(frame.joints, kind).astype(np.float32)
    return state, robot.model_from_joints(frame.action, kind).astype(np.float32)


def write_part(
    path: Path, target: Path, options: ExportOptions, step: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """Export the bag `path` as a dataset of its own in `target`, and return what it came to.

    `target` appears when it is whole.

    Args:
        step: called with how many frames are done, and of how many.

    Raises:
        ExportError: the bag cannot be exported.
    """
    with Source(path) as source:
        topics = topics_of(source, options)
        views = views_of(topics, options)
        plan = plan_of(source, topics, tuple(dict.fromkeys(views.values())), options)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            _write(source, topics, views, plan, scratch, options, step)
            told = _told(source, plan, options)
            (scratch / PART).write_text(json.dumps(told))
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return told


def _write(
    source: Source,
    topics: Topics,
    views: Mapping[str, str],
    plan: Plan,
    target: Path,
    options: ExportOptions,
    step: Callable[[int, int], None],
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    every = [frame for episode in plan.episodes for frame in episode]
    ends = set(np.cumsum([len(episode) for episode in plan.episodes]).tolist())
    outcome = source.about.get("outcome", "")
    written: Any = None
    for count, (frame, images) in enumerate(with_images(source, topics, every), 1):
        if written is None:
            shapes = {view: images[camera].shape for view, camera in views.items()}
            written = LeRobotDataset.create(
                REPOSITORY,
                round(options.rate),
                features(options, shapes),
                root=target,
                robot_type=options.robot,
                use_videos=options.videos,
                image_writer_threads=0 if options.videos else 2,
                streaming_encoding=options.videos,
                # The encoder waits for nobody: with room for fewer it would leave frames out.
                encoder_queue_maxsize=len(every) + 1,
            )
        state, action = vectors(frame, options)
        row = {STATE: state, ACTION: action, INTERVENTION: np.array([frame.intervention]), OUTCOME: outcome}
        pictures = {image_key(view): images[camera] for view, camera in views.items()}
        written.add_frame({**row, **pictures, "task": frame.task})
        if count in ends:
            with quiet():
                written.save_episode()
        step(count, len(every))
    if written is None or written.meta.total_frames != len(every):
        raise ExportError(f"{source.path}: its images ended before the last of {len(every)} frames")
    with quiet():
        written.finalize()


def _told(source: Source, plan: Plan, options: ExportOptions) -> dict[str, Any]:
    return {
        "bag": source.path.name,
        "checkpoint": source.about.get("checkpoint", ""),
        "outcome": source.about.get("outcome", ""),
        "age_ms": round(plan.age_ns * 1e-6, 1),
        "gaps": list(plan.gaps),
        "episodes": [
            {"start_ns": e[0].time_ns, "frames": len(e), "interventions": sum(frame.intervention for frame in e)}
            for e in plan.episodes
        ],
    }


def join_parts(parts: Sequence[Path], target: Path, options: ExportOptions) -> dict[str, Any]:
    """Join finished parts, in their order, into the dataset `target`; returns what is written of where it came from.

    Raises:
        FileExistsError: `target` is there.
        ExportError: the parts do not fit each other.
    """
    from lerobot.datasets.aggregate import aggregate_datasets

    if target.exists():
        raise FileExistsError(f"{target} exists already; a dataset is never overwritten")
    scratch = target.with_name(f".{target.name}.joining")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with quiet():
            # With images among the rows a file would be read and written anew for every part that is added to it.
            aggregate_datasets(
                [REPOSITORY] * len(parts),
                REPOSITORY,
                roots=list(parts),
                aggr_root=scratch,
                concatenate_data=options.videos,
            )
        rewrite_statistics(scratch)
        bags = [json.loads((part / PART).read_text()) for part in parts]
        about = {"made_by": "molmoact2 export", **json.loads(options.text()), "bags": bags}
        (scratch / PROVENANCE).write_text(json.dumps(about, indent=1))
        scratch.rename(target)
    except ValueError as error:
        raise ExportError(f"the bags do not fit into one dataset: {error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return about


def rewrite_statistics(root: Path) -> None:
    """Put the quantiles of all states and actions together into the statistics.

    lerobot averages the quantiles of the episodes, and those are approximate; a policy that scales by q01 and q99, as
    MolmoAct2 does, needs those of the whole.
    """
    from lerobot.datasets.io_utils import load_stats, write_stats

    stats: Any = load_stats(root)
    for key in (STATE, ACTION):
        values = column(root, key)
        stats[key] = {
            "min": values.min(0),
            "max": values.max(0),
            "mean": values.mean(0),
            "std": values.std(0),
            "count": np.array([len(values)]),
            **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()},
        }
    write_stats(stats, root)


def column(root: Path, key: str) -> NDArray[np.float64]:
    """A column of numbers of a dataset, all frames in order: (frames, values)."""
    import pyarrow.parquet as parquet

    files = sorted((root / "data").glob("*/*.parquet"))
    return np.concatenate([np.stack(parquet.read_table(f, columns=[key])[key].to_numpy()) for f in files]).astype(float)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars of lerobot and its libraries off the terminal."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield

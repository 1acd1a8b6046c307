"""`molmoact2 train-cell`: from scripted demonstrations to a small checkpoint of a simulated cell, on two CPU cores.

Stages, each resumable from what it has written to `--work`:
1. demonstrations, in shards, by a worker process (training begins when the first few are there);
2. norm statistics, tokenizer and depth codebook from the first shards;
3. training with flow, depth and place losses; state saved every few minutes, losses in `loss.csv`;
4. corrections (`--corrections`): episodes driven by the policy and labelled by the expert join the data;
5. the checkpoint directory in the released format, with `training.json`: the command, the seed and what was measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molmoact2_ros.embodiments.so101 import SO101
from molmoact2_ros.training.checkpoint import (
    SmallModel,
    build_config,
    build_processor,
    new_model,
    norm_stats,
    write_checkpoint,
)
from molmoact2_ros.training.demonstrations import Samples, gather
from molmoact2_ros.training.depth_codes import encode, learn_codebook, save_codebook
from molmoact2_ros.training.objective import Objective, PromptTemplate, patches
from molmoact2_ros.training.tokenizer import build_tokenizer, prompt_texts

TASK = "pick up the red cube"
SIZES = SmallModel()
DEPTH_PATCH = 8
BLANK_SHARE = 0.03
"""Share of examples whose images are replaced by blank ones."""
SHARD_EPISODES = 50
STATISTICS_SHARDS = 8
GRID = math.isqrt(SIZES.num_depth_codes)
PLACE_CENTRE, PLACE_SCALE = np.array([0.21, 0.0, 0.03]), np.array([0.05, 0.10, 0.03])


def normalise(values: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    """q01..q99 to [-1, 1], clipped, as the reference does."""
    low, high = np.asarray(stats["q01"]), np.asarray(stats["q99"])
    return np.clip(2.0 * (values - low) / (high - low) - 1.0, -1.0, 1.0)


def unnormalise(values: np.ndarray, stats: dict[str, Any]) -> np.ndarray:
    """[-1, 1], clipped, to q01..q99, as the reference does."""
    low, high = np.asarray(stats["q01"]), np.asarray(stats["q99"])
    return (np.clip(values, -1.0, 1.0) + 1.0) * (high - low) / 2.0 + low


def statistics(values: np.ndarray) -> dict[str, Any]:
    """The entry of norm_stats.json for vectors (n, dof) in model units."""
    quantiles = np.quantile(values, [0.01, 0.5, 0.99], axis=0)
    rows = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    rows |= {"q01": quantiles[0], "q50": quantiles[1], "q99": quantiles[2]}
    out: dict[str, Any] = {name: [round(float(v), 5) for v in row] for name, row in rows.items()}
    return out | {"names": list(SO101.joint_names), "mask": [True] * SO101.dof, "count": len(values)}


def metadata(samples: Samples) -> dict[str, Any]:
    """What norm_stats.json says about this robot's tag."""
    return {
        "action_key": "action",
        "state_keys": ["observation.state"],
        "camera_keys": [f"observation.images.{name}" for name in SO101.camera_names],
        "normalize_gripper": True,
        "action_horizon": SO101.horizon,
        "n_action_steps": SO101.horizon,
        "setup_type": SO101.setup_type,
        "control_mode": SO101.control_mode,
        "action_stats": statistics(SO101.model_from_joints(samples.chunks.reshape(-1, SO101.dof))),
        "state_stats": statistics(SO101.model_from_joints(samples.joints)),
    }


class Trainer:
    """Model, data and optimiser of one work directory."""

    def __init__(self, work: Path, seed: int, samples: Samples) -> None:
        self.work = work
        self.seed = seed
        basis = work / "basis.npz"
        if basis.exists():
            with np.load(basis, allow_pickle=False) as data:
                self.codebook, self.meta = data["codebook"], json.loads(str(data["metadata"]))
        else:
            cells = samples.depth.reshape(-1, DEPTH_PATCH, DEPTH_PATCH)
            chosen = np.random.default_rng(seed).choice(len(cells), min(len(cells), 30_000), replace=False)
            self.codebook, self.meta = learn_codebook(cells[chosen], 128, seed), metadata(samples)
            np.savez(basis, codebook=self.codebook, metadata=json.dumps(self.meta))
        tokenizer, vocabulary = build_tokenizer(prompt_texts([TASK], SO101.setup_type, SO101.control_mode))
        self.processor = build_processor(SIZES, tokenizer)
        model = new_model(build_config(SIZES, tokenizer, vocabulary), seed)
        template = PromptTemplate.build(model, self.processor, self.meta, TASK)
        self.objective = Objective(model, template)
        self.optimiser = torch.optim.AdamW(self.objective.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
        self.step = 0
        self.data: list[tuple[torch.Tensor, ...]] = []

    # -- data
    # -----------------------------------------------------------------------------------------------------------

    def tensors(self, samples: Samples) -> tuple[torch.Tensor, ...]:
        """Model inputs and targets of `samples`: images, normalised state, chunks, codes, place."""
        return (
            torch.from_numpy(samples.images),
            torch.from_numpy(normalise(SO101.model_from_joints(samples.joints), self.meta["state_stats"])).float(),
            torch.from_numpy(normalise(SO101.model_from_joints(samples.chunks), self.meta["action_stats"])).float(),
            torch.from_numpy(encode(samples.depth, self.codebook)).flatten(1),
            torch.from_numpy((samples.cube - PLACE_CENTRE) / PLACE_SCALE).float(),
        )

    def add(self, samples: Samples) -> None:
        """Put `samples` into the training set."""
        self.data.append(self.tensors(samples))

    def batch(self, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        """A random batch over all shards, with a little noise on the state, so that a token's last bit means little."""
        counts = np.array([len(shard[0]) for shard in self.data])
        ends = np.cumsum(counts)
        rows = rng.integers(ends[-1], size=size)
        shards = np.searchsorted(ends, rows, side="right")
        picked = zip(shards, rows - (ends - counts)[shards], strict=True)
        examples = [[part[row] for part in self.data[shard]] for shard, row in picked]
        images, state, chunks, codes, place = (torch.stack(column) for column in zip(*examples, strict=True))
        for row in np.flatnonzero(rng.random(size) < BLANK_SHARE):
            # With nothing to see the answer is to stay; and the depth sequence must come to its end all the same.
            noise = rng.integers(0, int(rng.integers(1, 60)), images[row].shape)
            images[row] = torch.from_numpy(np.clip(rng.choice([0, 0, 40, 128, 200]) + noise, 0, 255).astype(np.uint8))
            chunks[row] = self.stay(state[row])
            place[row] = 0.0
        state = state + 0.006 * torch.from_numpy(rng.standard_normal(state.shape)).float()
        return patches(images.numpy(), SIZES.patch_size), bins(state), chunks, codes, place

    def stay(self, state: torch.Tensor) -> torch.Tensor:
        """The normalised chunk row that keeps the arm at the normalised `state` (dof,)."""
        vector = unnormalise(state.numpy().astype(np.float64), self.meta["state_stats"])
        return torch.from_numpy(normalise(vector, self.meta["action_stats"])).float()

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self, until: int, total: int, batch: int, peak: float) -> None:
        """Train to step `until` of a schedule of `total` steps (warm-up, then cosine to a twentieth of `peak`)."""
        self.objective.train()
        started, log = time.monotonic(), []
        while self.step < until:
            rng = np.random.default_rng([self.seed, self.step])
            torch.manual_seed(self.seed * 1_000_003 + self.step)
            share = self.step / total
            rate = (
                peak
                * min(1.0, (self.step + 1) / 200)
                * (0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share))))
            )
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            losses = self.objective(*self.batch(batch, rng))
            loss = losses["flow"] + 0.1 * losses["depth"] + 0.3 * losses["place"]
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
            self.optimiser.step()
            self.step += 1
            log.append({name: float(value.detach()) for name, value in losses.items()})
            if self.step % 50 == 0:
                mean = {name: float(np.mean([row[name] for row in log])) for name in log[0]}
                speed = (time.monotonic() - started) / len(log)
                self._log(mean, rate, speed)
                started, log = time.monotonic(), []
                if self.step % 250 == 0:
                    self.save()
                self.on_pause()
        self.save()

    def on_pause(self) -> None:
        """Called every 50 steps; the data worker's new shards are taken in here."""

    def _log(self, mean: dict[str, float], rate: float, speed: float) -> None:
        path = self.work / "loss.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["step", "flow", "depth", "place", "learning_rate", "seconds_per_step", "samples"])
            samples = sum(len(shard[0]) for shard in self.data)
            figures = [mean["flow"], mean["depth"], mean["place"], rate, speed]
            writer.writerow([self.step, *(f"{v:.5g}" for v in figures), samples])
        print(
            f"step {self.step}  flow {mean['flow']:.4f}  depth {mean['depth']:.3f}  place {mean['place']:.4f}  "
            f"{speed:.2f} s/step  {samples} samples",
            flush=True,
        )

    def save(self) -> None:
        """Write the training state, complete or not at all."""
        partial = self.work / "state.partial"
        torch.save(
            {"step": self.step, "objective": self.objective.state_dict(), "optimiser": self.optimiser.state_dict()},
            partial,
        )
        partial.rename(self.work / "state.pt")

    def resume(self) -> bool:
        """Load the saved training state, if there is one."""
        path = self.work / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])
        return True

    # -- use
    # ------------------------------------------------------------------------------------------------------------

    def controller(self, images: np.ndarray, joints: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """One chunk (horizon, dof) in rad from the present weights, with true depth codes (see `Objective.act`)."""
        self.objective.eval()
        state = torch.from_numpy(normalise(SO101.model_from_joints(joints), self.meta["state_stats"])).float()[None]
        codes = torch.from_numpy(encode(depth, self.codebook)).reshape(1, -1)
        chunk = self.objective.act(patches(images[None], SIZES.patch_size), bins(state), codes)[0, :, : SO101.dof]
        vector = unnormalise(chunk.numpy().astype(np.float64), self.meta["action_stats"])
        return SO101.joints_from_model(vector)

    def export(self, directory: Path, record: dict[str, Any]) -> None:
        """Write the checkpoint directory in bf16, with the codebook and `training.json`."""
        self.objective.eval()
        stats = norm_stats(SO101.norm_tag, self.meta)
        write_checkpoint(directory, self.objective.model, self.processor, stats, dtype=torch.bfloat16)
        save_codebook(directory, self.codebook)
        (directory / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def bins(state: torch.Tensor) -> torch.Tensor:
    """Normalised state (n, dof) to state token numbers, as the reference rounds them."""
    return torch.round((state.clamp(-1.0, 1.0) + 1.0) / 2.0 * 255.0).long()


def _write_shards(work: Path, seed: int, shards: int, stumbles: int) -> None:
    torch.set_num_threads(1)
    for index in range(shards + stumbles):
        path = work / "data" / f"expert_{index:03d}.npz"
        if not path.exists():
            episodes = range(index * SHARD_EPISODES, (index + 1) * SHARD_EPISODES)
            scatter = 0.35 if index < shards else 0.85
            gather(episodes, seed, image_size=SIZES.image_size, grid=GRID, patch=DEPTH_PATCH, scatter=scatter).save(
                path
            )


def _corrections(trainer: Trainer, round_number: int, shards: int) -> None:
    """Gather what the present policy does, labelled by the expert, and add it to the data."""
    for index in range(shards):
        path = trainer.work / "data" / f"correction_{round_number}_{index:03d}.npz"
        if not path.exists():
            torch.manual_seed(trainer.seed + index)
            first = 100_000 * (round_number + 1) + index * SHARD_EPISODES
            episodes = range(first, first + SHARD_EPISODES)
            samples = gather(
                episodes,
                trainer.seed,
                image_size=SIZES.image_size,
                grid=GRID,
                patch=DEPTH_PATCH,
                controller=trainer.controller,
            )
            samples.save(path)
        trainer.add(Samples.load(path))
        print(f"correction round {round_number}: shard {index + 1} of {shards}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Arguments of `molmoact2 train-cell`."""
    out = argparse.ArgumentParser(prog="molmoact2 train-cell", description=__doc__.splitlines()[0] if __doc__ else None)
    out.add_argument("--robot", choices=["so101"], default="so101")
    out.add_argument("--work", type=Path, default=Path("runs/so101_cell"), help="data, training state and losses")
    out.add_argument("--out", type=Path, default=Path("runs/so101_cell/checkpoint"), help="where the checkpoint goes")
    out.add_argument("--shards", type=int, default=48, help=f"shards of {SHARD_EPISODES} demonstrations")
    out.add_argument("--stumbles", type=int, default=8, help="further shards that mostly begin in odd places")
    out.add_argument("--steps", type=int, default=6000)
    out.add_argument("--batch", type=int, default=32)
    out.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    out.add_argument("--corrections", type=int, default=1, help="rounds of episodes driven by the policy itself")
    out.add_argument("--correction-shards", type=int, default=6)
    out.add_argument("--seed", type=int, default=100)
    out.add_argument("--threads", type=int, default=1, help="CPU threads of the trainer")
    return out


def main(argv: list[str] | None = None) -> int:
    """Train the checkpoint of the simulated cell; safe to interrupt and to start again."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    work: Path = options.work
    (work / "data").mkdir(parents=True, exist_ok=True)
    worker = multiprocessing.get_context("spawn").Process(
        target=_write_shards, args=(work, options.seed, options.shards, options.stumbles), daemon=True
    )
    worker.start()
    try:
        seen: list[Path] = []

        def new_shards() -> list[Path]:
            found = [p for p in sorted((work / "data").glob("expert_???.npz")) if p not in seen]
            seen.extend(found)
            return found

        while len(list((work / "data").glob("expert_???.npz"))) < min(STATISTICS_SHARDS, options.shards):
            if worker.exitcode not in (None, 0):
                print("the data worker has failed; its error is above", file=sys.stderr)
                return 1
            time.sleep(1.0)
        first = [Samples.load(p) for p in sorted((work / "data").glob("expert_???.npz"))[:STATISTICS_SHARDS]]
        trainer = Trainer(work, options.seed, Samples.concatenate(first))
        del first
        trainer.resume()

        def take_in() -> None:
            for path in new_shards():
                trainer.add(Samples.load(path))

        trainer.on_pause = take_in  # type: ignore[method-assign]
        take_in()
        rounds = max(0, options.corrections)
        for number in range(rounds + 1):
            until = round(options.steps * (0.6 + 0.4 * number / rounds)) if rounds else options.steps
            if number:
                _corrections(trainer, number, options.correction_shards)
            trainer.train(until, options.steps, options.batch, options.rate)
        record = {
            "command": shlex.join(["molmoact2", "train-cell", *arguments]),
            "task": TASK,
            "seed": options.seed,
            "steps": trainer.step,
            "samples": sum(len(shard[0]) for shard in trainer.data),
            "sizes": asdict(SIZES),
        }
        trainer.export(options.out, record)
        print(f"checkpoint written to {options.out}")
        return 0
    finally:
        worker.terminate()
        worker.join()


if __name__ == "__main__":
    sys.exit(main())

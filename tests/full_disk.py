"""Runs whose disk is full from half of them on, until so many frames: ``FOLDER FRAMES...``."""

from __future__ import annotations

import contextlib
import shutil
import sys
import warnings
from pathlib import Path

import runs
from torchrl.checkpoint import CheckpointError

from torchrl_metra import VerifiedCheckpoint


def main(folder: Path, freed_after: int) -> None:
    trainer = runs.make_trainer(folder)

    def fill() -> None:
        if trainer.collected_frames == 400:
            with contextlib.suppress(OSError):
                (folder / "ballast").write_bytes(bytes(1 << 20))
        if trainer.collected_frames == freed_after:
            (folder / "ballast").unlink()

    trainer.register_op("post_steps", fill)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.train()
        except CheckpointError as error:
            print("stopped:", error)
    messages = [str(warning.message) for warning in caught]
    print("warned:", [message for message in messages if "could not be written" in message])
    print("frames:", trainer.collected_frames)
    print("names:", sorted(path.name for path in folder.iterdir()))
    for path in folder.glob("checkpoint-*"):
        VerifiedCheckpoint.verify(path)
        shutil.rmtree(path)
    print("end of run")


if __name__ == "__main__":
    for frames in sys.argv[2:]:
        main(Path(sys.argv[1]), int(frames))

"""The packs of a run's last epochs on its disk, so that a run that is taken up again need not make them anew: only large ones are kept.

It holds nothing that does not follow from the corpus and the seed: what is missing, damaged or of other settings is made again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnmaskError
from .manifest import MANIFEST, check_manifest, write_manifest
from .whole import whole_folder

INFO, ORDER, BOUNDS = "order.json", "windows.npy", "bounds.npy"
EPOCHS = 2  # kept: the one in use, and the next, where a thread works ahead

log = logging.getLogger(__name__)


class KeptOrder:
    """Folders `epoch-00000003` of a run: which windows lie together in that epoch, in the order of the steps.

    `key` says what the order follows from; folders of another key are as good as none.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.writes = True  # of several processes one alone does
        self._infos: dict[Path, dict[str, Any] | None] = {}  # what was checked before; None: damaged

    def num_packs(self) -> int | None:
        """Return how many packs an epoch has, if any epoch is kept."""
        return next((int(info["num_packs"]) for _, info in self._kept()), None)

    def read(self, epoch: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the order of the windows and the packs' bounds in it, as they were written; None where they are not there."""
        for folder, info in self._kept():
            if info["epoch"] == epoch:
                # mapped: a run that is taken up reads the pages of the steps that it makes
                return np.load(folder / ORDER, mmap_mode="r", allow_pickle=False), np.load(folder / BOUNDS, allow_pickle=False)
        return None

    def write(self, epoch: int, num_packs: int, order: np.ndarray, bounds: np.ndarray) -> None:
        """Keep an epoch, in the place of the oldest; where that cannot be, a line in the log says so."""
        if not self.writes:
            return
        target = self.folder / f"epoch-{epoch:08d}"
        try:
            self.folder.mkdir(exist_ok=True)
            with whole_folder(target, made_of=(INFO, ORDER, BOUNDS, MANIFEST)) as partial:
                np.save(partial / ORDER, order, allow_pickle=False)
                np.save(partial / BOUNDS, bounds, allow_pickle=False)
                info = {"key": self.key, "epoch": epoch, "num_packs": num_packs}
                (partial / INFO).write_text(json.dumps(info) + "\n", encoding="utf-8")
                write_manifest(partial)
            self._infos.pop(target, None)
            for old in self._folders()[EPOCHS:]:
                shutil.rmtree(old)
        except (OSError, UnmaskError) as error:
            log.warning("the order of epoch %d is not kept in '%s', and a resume will make it again: %s", epoch, self.folder, error)

    def _folders(self) -> list[Path]:
        """Return the folders of epochs, the one that was written last first."""
        found = [path for path in self.folder.glob("epoch-????????") if path.is_dir()]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)

    def _kept(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for folder in self._folders():
            if folder not in self._infos:
                try:
                    if not (folder / MANIFEST).is_file():
                        raise CheckpointError(f"its {MANIFEST} is missing")
                    check_manifest(folder)
                    self._infos[folder] = json.loads((folder / INFO).read_text(encoding="utf-8"))
                except (OSError, ValueError) as error:
                    log.warning("the order of an epoch in '%s' is not whole, and is made again: %s", folder, error)
                    self._infos[folder] = None
            info = self._infos[folder]
            if info is not None and info["key"] == self.key:
                yield folder, info

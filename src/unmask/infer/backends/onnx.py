"""The ONNX Runtime backend: a folder that `unmask export` made, without torch and transformers."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import CheckpointError, require
from . import Backend

if TYPE_CHECKING:
    from ..request import Pack

MODEL = "model.onnx"
KEY = "unmask"  # of the file's metadata, under which an export says what it is
INPUTS = {"input_ids", "attention_mask", "token_type_ids", "label_positions"}
OUT_OF_MEMORY = ("bad_alloc", "failed to allocate memory", "bad allocation", "out of memory")


class OnnxBackend(Backend):
    """Runs an exported model on the CPU; `info` is what the export says of itself, `threads` how many it may use (by default, all)."""

    name = "onnx"
    padded = True

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        self.folder, self.path = Path(folder), Path(folder) / MODEL
        self.threads = threads if threads is not None else _threads()
        self.lock = threading.RLock()
        if not self.path.is_file():
            raise CheckpointError(f"'{folder}' has no {MODEL}, so it is no model that Unmask exported; make one with `unmask export`")
        self._open()
        known = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        self.inputs = {value.name for value in self.session.get_inputs()}
        if known is None or not self.inputs <= INPUTS or "label_positions" not in self.inputs:
            raise CheckpointError(f"'{self.path}' was not made by `unmask export`, whose models say what they are; export the model again")
        self.info: dict[str, Any] = json.loads(known)
        self.precision = self.info["precision"]
        self.max_length = self.info["max_length"]
        self.head = self.info["head"]

    def _open(self) -> None:
        runtime = require("onnxruntime", extra="onnx", why="an exported model")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # plans are made for shapes, and these vary
        # threads that wait for work in a loop hold up torch's, or those of another session, once a pass is over
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has a class of its own for each way to fail
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"'{self.path}' cannot be loaded by ONNX Runtime {runtime.__version__}: {reason}") from error
        self.process = os.getpid()

    def forward(self, batch: Pack) -> np.ndarray:
        """Return the fp32 logits at the label positions of a pack. Shapes: (N, V)."""
        ids, mask, rows = batch.padded(self.info["pad_token_id"])
        feeds = {"input_ids": ids, "attention_mask": mask, "label_positions": rows}
        if "token_type_ids" in self.inputs:
            feeds["token_type_ids"] = types = np.zeros_like(ids)
            if batch.token_type_ids is not None:
                types[mask.astype(bool)] = batch.token_type_ids
        return self.session.run(None, feeds)[0]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the session for one pass: two at a time would take twice the memory, and each half of the processor."""
        with self.lock:
            if self.process != os.getpid():  # its threads have not come along into a process that was forked
                self._open()
            yield

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether an error says that memory ran out."""
        return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


def _threads() -> int:
    """Return how many threads to run with: what OMP_NUM_THREADS says, as for torch; 0, the runtime's choice, where all cores are ours."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    ours = len(os.sched_getaffinity(0))
    return 0 if ours == os.cpu_count() else ours

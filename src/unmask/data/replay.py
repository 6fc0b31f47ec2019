"""Replay: a part of every step is text of another corpus, so that what a model knew before is not forgotten."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from .loader import Loader

if TYPE_CHECKING:
    from .batch import PackedBatch

FIRST_KEY = 2**40  # masks of the replayed documents are drawn by numbers from here on: no document of the domain has one


class ReplayLoader:
    """The batches of two loaders, step by step: the domain's, each of its tokens once an epoch, and beside them the replayed text's.

    Both are pure functions of (seed, step), and so is this. Documents of the replayed text are numbered after those of the domain.
    """

    def __init__(self, domain: Loader, replay: Loader) -> None:
        self.domain, self.replay = domain, replay
        self.packer, self.plan, self.masking = domain.packer, domain.plan, domain.masking

    def divide(self, rank: int, size: int) -> None:
        """Give, from now on, only the part of every step that is one of `size` processes' own."""
        self.domain.divide(rank, size)
        self.replay.divide(rank, size)

    def batch(self, step: int, probability: float | None = None) -> list[PackedBatch]:
        """Return the micro-batches of a step: first those of the domain, then the replayed ones."""
        batches = self.domain.batch(step, probability)
        first = len(self.domain.packer.store)
        for batch in self.replay.batch(step, probability):
            documents = batch.documents.where(batch.documents < 0, batch.documents + first)
            batches.append(dataclasses.replace(batch, documents=documents))
        return batches

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Return how many steps it takes to see every token of the domain once."""
        return self.domain.steps_per_epoch(epoch)

    def epoch_of(self, step: int) -> int:
        """Return the epoch of the domain (from 0) that a step belongs to."""
        return self.domain.epoch_of(step)

    def num_tokens_of(self, step: int) -> int:
        """Return how many real tokens, special ones among them, a step has."""
        return self.domain.num_tokens_of(step) + self.replay.num_tokens_of(step)

    @property
    def tokens_a_step(self) -> float:
        """How many content tokens a step has, in the mean."""
        return self.domain.tokens_a_step + self.replay.tokens_a_step

    @property
    def share(self) -> float:
        """The share of the content tokens that are replayed, in the mean."""
        return self.replay.tokens_a_step / self.tokens_a_step

    def document_id(self, document: int) -> str:
        """Return the name of a document, of whichever text."""
        first = len(self.domain.packer.store)
        return self.domain.document_id(document) if document < first else self.replay.document_id(document - first)

    def tokens_of(self, document: int) -> np.ndarray:
        """Return the token ids of a document, of whichever text."""
        first = len(self.domain.packer.store)
        return self.domain.tokens_of(document) if document < first else self.replay.tokens_of(document - first)

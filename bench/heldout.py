"""The held-out numbers of models on a packed corpus, on the same frozen 15% masks.

python bench/heldout.py CORPUS MODEL [MODEL ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from unmask.data.frozen import EVAL_MASKING, frozen_batches, masks_fingerprint
from unmask.data.store import TokenStore
from unmask.data.tokenizer import load_tokenizer, special_ids, tokenizer_hash
from unmask.model.load import load_model, max_positions, position_offset
from unmask.train.heldout import heldout
from unmask.train.precision import choose


def main(corpus: str, *models: str) -> None:
    """Print a line of JSON for each model."""
    for name in models:
        tokenizer = load_tokenizer(name)
        store = TokenStore.open(Path(corpus) / "heldout", tokenizer_hash=tokenizer_hash(tokenizer))
        model = load_model(name, tokenizer=tokenizer)
        masking, common = EVAL_MASKING, {"vocab_size": len(tokenizer), "seed": 0}
        length = min(128, max_positions(model) or 128)
        batches = frozen_batches(
            store, special_ids(tokenizer), masking, **common,
            max_length=length, micro_tokens=4096, position_offset=position_offset(model),
        )  # fmt: skip
        numbers = heldout(model, batches, choose("auto", "cpu"))
        fingerprint = masks_fingerprint(store, special_ids(tokenizer), masking, **common)
        print(json.dumps({"model": name, "corpus": corpus, **numbers, "masks_fingerprint": fingerprint}))


if __name__ == "__main__":
    main(*sys.argv[1:])

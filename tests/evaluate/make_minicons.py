"""Small models whose every weight is a function of its name, and what minicons says of them.

    PYTHONPATH=. python tests/evaluate/make_minicons.py      # writes minicons.json beside this file; needs `pip install 'unmask[bench]'`

test_pll.py makes the same models from the vocabularies in minicons.json and compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("minicons.json")
FAMILIES = ("bert", "roberta", "modernbert")
METHODS = {"original": "original", "word_l2r": "within_word_l2r"}  # ours -> minicons'
LIMIT = 64
TEXTS = [
    "The nurse treats the patient in the hospital today.",
    "Unbelievably, the surgeons of Harbourmouth antidisestablish everything!",
    "In 1984 the judge's library held 12,345 books (and a tower).",
    "nurse",
    "A café — naïve?",
    "The witness thanks the farmer; the farmer thanks the witness.",
]


def tokenizer_of(family: str, vocabularies: dict[str, Any]) -> Any:
    """Return a WordPiece tokenizer for BERT, a byte-level one for the others."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if family == "bert":
        backend = Tokenizer(models.WordPiece({token: number for number, token in enumerate(vocabularies["wordpiece"])}, unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    else:
        merges = [tuple(pair) for pair in vocabularies["merges"]]
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
        backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        backend.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def model_of(family: str, vocab_size: int) -> Any:
    """Return a two-layer model, 32 wide, with weights large enough to tell tokens and places apart."""
    import torch
    from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig, RobertaConfig

    from unmask.rng import rng

    dials = {"vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ends = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = {
        "bert": lambda: BertConfig(**dials, max_position_embeddings=LIMIT),
        "roberta": lambda: RobertaConfig(**dials, max_position_embeddings=LIMIT + 1, pad_token_id=0),
        "modernbert": lambda: ModernBertConfig(**dials, **ends, max_position_embeddings=LIMIT, local_attention=8),
    }[family]()
    model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.from_numpy(rng(0, name).standard_normal(tuple(parameter.shape)) * 0.15))
    return model


def save(family: str, vocabularies: dict[str, Any], folder: Path) -> Path:
    """Write the model and the tokenizer of a family into a folder, and return it."""
    tokenizer = tokenizer_of(family, vocabularies)
    model_of(family, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def vocabularies() -> dict[str, Any]:
    """Return vocabularies trained on the sentences of tests/conftest.py."""
    from tests.conftest import sentences

    from unmask.data.tokenizer import train_tokenizer

    wordpiece = train_tokenizer(sentences(200), kind="wordpiece", vocab_size=200)
    letters = sorted({char for text in TEXTS for char in text.lower() if char.isascii() and not char.isspace()})
    extra = [token for char in letters for token in (char, f"##{char}") if token not in wordpiece.get_vocab()]
    known = sorted(wordpiece.get_vocab(), key=wordpiece.get_vocab().__getitem__)
    bpe = json.loads(train_tokenizer(sentences(200), kind="bpe", vocab_size=400).backend_tokenizer.to_str())
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = specials + [token for token in known if token not in specials] + extra
    # "'s" is one token, as in every published vocabulary of this kind
    return {"wordpiece": tokens, "merges": [*bpe["model"]["merges"], ["'", "s"]]}


def main() -> None:
    import tempfile

    import minicons
    import torch
    import transformers
    from minicons.scorer import MaskedLMScorer

    made = vocabularies()
    scores: dict[str, dict[str, list[list[float]]]] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            save(family, made, Path(folder))
            model = transformers.AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        # minicons 0.3.39 calls what transformers 5 took away
        tokenizer.batch_encode_plus = lambda texts, tokenizer=tokenizer, **options: tokenizer(list(texts), **options)
        scorer = MaskedLMScorer(model, "cpu", tokenizer=tokenizer)
        scores[family] = {
            ours: [[round(value, 5) for _, value in scorer.token_score([text], PLL_metric=theirs)[0]] for text in TEXTS]
            for ours, theirs in METHODS.items()
        }
    how = {"minicons": getattr(minicons, "__version__", "0.3.39"), "transformers": transformers.__version__, "made_by": Path(__file__).name}
    FILE.write_text(
        json.dumps({**how, "texts": TEXTS, "scores": scores, "vocabularies": made}, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

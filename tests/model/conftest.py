"""A tokenizer of a few dozen words, and a small model of each architecture that Unmask says it runs."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

WORDS = ["the", "a", "of", "in", "to", "array", "return", "list", "value", "string", "number", "file", "name", "type", "object", "class"]


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"[1:]]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def architectures():
    """Return {name: configuration} of two-layer models, 96 words, 64 wide."""
    from transformers import (
        AlbertConfig,
        BertConfig,
        DebertaV2Config,
        DistilBertConfig,
        ElectraConfig,
        EuroBertConfig,
        ModernBertConfig,
        MPNetConfig,
        RobertaConfig,
        XLMRobertaConfig,
    )

    dials = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    bert = {**dials, "max_position_embeddings": 70, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    deberta = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    return {
        "bert": BertConfig(**bert),
        "roberta": RobertaConfig(**bert, pad_token_id=1),
        "xlm-roberta": XLMRobertaConfig(**bert, pad_token_id=1),
        "distilbert": DistilBertConfig(
            vocab_size=96, dim=64, n_layers=3, n_heads=4, hidden_dim=80, max_position_embeddings=70, dropout=0.0, attention_dropout=0.0
        ),
        "electra": ElectraConfig(**bert, embedding_size=32),
        "albert": AlbertConfig(**bert, embedding_size=32, classifier_dropout_prob=0.0),
        "modernbert": ModernBertConfig(**dials, **ends, cls_token_id=2, sep_token_id=3, max_position_embeddings=70, local_attention=8),
        "eurobert": EuroBertConfig(**dials, **ends, mask_token_id=4, num_key_value_heads=2, max_position_embeddings=70),
        "deberta-v2": DebertaV2Config(**bert, **deberta, norm_rel_ebd="layer_norm", share_att_key=True, type_vocab_size=0, pad_token_id=0),
        "mpnet": MPNetConfig(**bert, pad_token_id=1),
    }


ARCHITECTURES = [
    "bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "modernbert", "eurobert", "deberta-v2", "mpnet",
]  # fmt: skip


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    """The name of each architecture in turn."""
    return request.param


@pytest.fixture
def configurations():
    """A fresh configuration of each architecture, by name."""
    return architectures()


@pytest.fixture(scope="session")
def small_model():
    """Return a function: architecture name -> a freshly seeded model whose weights are large enough to tell tokens apart."""

    def make(name: str):
        import torch
        from transformers import AutoModelForMaskedLM

        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(architectures()[name], dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
        return model

    return make

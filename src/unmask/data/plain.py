"""A tokenizer read from its folder without transformers, for what has to start at once: the names that the rest of Unmask uses, no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import TokenizerError

ROLES = ("mask", "pad", "cls", "sep", "unk", "bos", "eos")


class PlainTokenizer:
    """A tokenizer.json with the names of its special tokens."""

    def __init__(self, backend: Any, roles: dict[str, str], name: str) -> None:
        self.backend_tokenizer, self.name_or_path = backend, name
        self.added_tokens_decoder: dict[int, Any] = backend.get_added_tokens_decoder()
        for role in ROLES:
            setattr(self, f"{role}_token", roles.get(f"{role}_token"))
        # transformers leaves it out of the settings where it is what the class has anyway
        self.model_input_names = ["input_ids", *(["token_type_ids"] if roles.get("cls_token") == "[CLS]" else []), "attention_mask"]
        self.all_special_ids = sorted({number for token in roles.values() if (number := backend.token_to_id(token)) is not None})

    @classmethod
    def load(cls, folder: str | Path) -> PlainTokenizer:
        """Return the tokenizer of a folder with tokenizer.json and tokenizer_config.json.

        Raises: TokenizerError.
        """
        from tokenizers import Tokenizer

        path = Path(folder)
        try:
            backend = Tokenizer.from_file(str(path / "tokenizer.json"))
            settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"cannot load the tokenizer in '{folder}': {error}; expected tokenizer.json, tokenizer_config.json"
            ) from error
        backend.no_truncation()
        backend.no_padding()
        roles = {}
        for role, token in settings.items():
            content = token.get("content") if isinstance(token, dict) else token
            if role.endswith("_token") and isinstance(content, str):
                roles[role] = content
        made = cls(backend, roles, str(folder))
        made.model_input_names = settings.get("model_input_names", made.model_input_names)
        return made

    def __getattr__(self, name: str) -> Any:
        role = name.removesuffix("_token_id")
        if role == name or role not in ROLES:
            raise AttributeError(f"a plain tokenizer has no {name!r}")
        token = getattr(self, f"{role}_token")  # which may be named later
        return None if token is None else self.backend_tokenizer.token_to_id(token)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Return token -> id, added tokens included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Return the token of an id, or a list for a list."""
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(int(number)) for number in ids]

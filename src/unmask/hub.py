"""Whether the Hugging Face Hub can be reached: asked once and quickly, where its own client tries for most of a minute; and why not."""

from __future__ import annotations

PATIENCE_SECONDS = 4.0
# by the kinds of error that its client has: what is wrong, and what to do
REASONS = {
    "HFValidationError": "no model there can have that name; name a local folder, or a Hub id such as bert-base-uncased",
    "GatedRepoError": "its authors give it to those who ask; ask on its page, and set HF_TOKEN",
    "RepositoryNotFoundError": "it has no such model; check the name, or set HF_TOKEN for a private one",
    "RevisionNotFoundError": "the model has no such revision; check it",
    "LocalEntryNotFoundError": "it does not answer, and this machine's cache has no such model; check the network and the name, or name "
    "a local folder",
}
OFFLINE = "HF_HUB_OFFLINE is set, and this machine's cache has no such model; unset it, check the name, or name a local folder"


def only_local() -> bool:
    """Return whether to look in this machine's cache only: HF_HUB_OFFLINE says so, or HF_ENDPOINT (by the proxies) does not answer."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE_SECONDS)  # whatever it answers, it is there
    except Exception:  # each version of the client has its own kinds
        return True
    return False


def why_not(error: BaseException) -> str:
    """Return why a model cannot be had from the Hub, and what to do, in a line; `error` is what its client, or transformers, raised."""
    from huggingface_hub import constants

    one: BaseException | None = error
    while one is not None:
        kind = type(one).__name__
        if kind in REASONS:
            return OFFLINE if constants.HF_HUB_OFFLINE and kind == "LocalEntryNotFoundError" else REASONS[kind]
        one = one.__cause__ or one.__context__
    said = " ".join(str(error).split()).partition(". ")[0][:120] or type(error).__name__
    return f"{said}; check the name, the network and (for a private model) HF_TOKEN, or name a local folder"

"""Whether the Hugging Face Hub can be reached: asked once and quickly, where its own client tries for most of a minute."""

from __future__ import annotations

PATIENCE_SECONDS = 4.0


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

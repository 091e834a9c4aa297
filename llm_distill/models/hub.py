"""Weights from the hub: the newest there is, or an earlier download where the hub is out of reach."""

from __future__ import annotations

from collections.abc import Sequence

from llm_distill.errors import UserError


def downloaded(name: str, revision: str | None, patterns: Sequence[str]) -> str:
    """The local folder of a hub id, in the hub's own cache; only the files of these patterns are fetched."""
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*", "consolidated*"],  # the same weights again, for other programs
            local_files_only=constants.is_offline_mode() or not answers(constants.ENDPOINT),
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:  # or a gated one, unseen
        raise UserError(
            f"{name}: {constants.ENDPOINT} shows no such model or revision; correct it, or log in with `hf auth login`."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name}: not downloaded yet, and {constants.ENDPOINT} is out of reach; "
            "go online, or name a folder or a .gguf file."
        ) from error


def answers(endpoint: str) -> bool:
    """Whether a server is there: asked once and briefly, since the hub's client tries half a minute for every file."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(endpoint, timeout=10):  # noqa: S310 - the user's own setting
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False

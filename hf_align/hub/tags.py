"""Names of states of a repo: which tags there are, and a tag for one commit that stays its own."""

from __future__ import annotations

from hf_align.hub.accounts import Kind
from hf_align.hub.retrying import retried, why_not
from hf_align.types import InputError


def tags_of(repo_id: str, kind: Kind) -> dict[str, str]:
    """The tags of a repo with their commits; none where there is no such repo.

    Raises:
        OSError: The Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        found = retried(lambda: api.list_repo_refs(repo_id, repo_type=kind))
    except errors.RepositoryNotFoundError:
        return {}
    except (errors.HTTPError, OSError) as error:
        raise OSError(f"the tags of {repo_id}: {why_not(error, repo_id)}") from error
    return {tag.name: tag.target_commit for tag in found.tags}


def tag_commit(repo_id: str, kind: Kind, tag: str, commit: str) -> None:
    """Gives a commit a name, once; the same again does nothing.

    Raises:
        InputError: Another commit has that name.
        OSError: The Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    there = tags_of(repo_id, kind).get(tag)
    if there not in (None, commit):
        raise InputError(
            f"{repo_id} has a tag {tag} already, on commit {there[:12]}; delete it there, or name "
            "another repo"
        )
    if there is not None:
        return
    api = HfApi()
    try:
        retried(
            lambda: api.create_tag(repo_id, repo_type=kind, tag=tag, revision=commit, exist_ok=True)
        )
    except (errors.HTTPError, OSError) as error:
        raise OSError(f"tag {tag} of {repo_id}: {why_not(error, repo_id)}") from error

"""A checkpoint of the Hugging Face Hub as a source: `hf://owner/name@revision` becomes a version like any other.

The revision is resolved to a commit first, and everything is read from that commit, so that a branch that moves changes
nothing. Only names that a version may hold are downloaded (so no `*.py` and no pickle), `auto_map` is dropped from the
configs, an architecture that this project does not serve is refused before the weights are downloaded, and every file
is compared with the digest that the hub has of it (sha256 of large files, git's sha1 of small ones).

`huggingface_hub` is needed only here (the extra `hub`) and imported when it is used; it reads `HF_TOKEN` and
`HF_ENDPOINT`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from acemath_registry.durable import require_space
from acemath_registry.errors import InvalidRequest, NotFound, RejectReason, StorageError, VerificationError
from acemath_registry.facts import MAY_NAME_CODE, architecture_of
from acemath_registry.files import CONFIG_NAME, reject_reason, sha256_file
from acemath_registry.progress import Progress, counter
from acemath_registry.tensors import read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

SCHEME: Final = "hf://"
_SOURCE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class HubCheckpoint:
    """Where a downloaded checkpoint comes from.

    Attributes:
        repo: `owner/name`.
        commit: 40 hex digits; what the revision was when it was asked for.
        licence: as the model's card says; None when it does not.
        skipped: files of the commit that a version may not hold.
        stripped: configs whose `auto_map` was dropped.
    """

    repo: str
    commit: str
    licence: str | None
    skipped: tuple[str, ...]
    stripped: tuple[str, ...] = field(default=())

    @property
    def source(self) -> str:
        """The address that names these files for ever."""
        return f"{SCHEME}{self.repo}@{self.commit}"

    def record(self) -> dict[str, Any]:
        """What a manifest's `training` says of it."""
        return {"source": self.source, "skipped": list(self.skipped), "auto_map_dropped": list(self.stripped)}


def is_hub_source(text: str) -> bool:
    """Whether a source of `publish` is an address on the hub."""
    return text.startswith(SCHEME)


def download(
    source: str,
    into: Path,
    progress: Progress,
    *,
    endpoint: str | None = None,
    accept: Callable[[HubCheckpoint], object] = lambda found: None,
) -> HubCheckpoint:
    """Put the files of a commit that a version may hold into the empty folder `into`.

    Args:
        source: `hf://owner/name` or `hf://owner/name@revision`; the revision is a branch, a tag or a commit.
        into: on the registry's file system.
        progress: hears of each file.
        endpoint: the hub's address; None for the library's own (`HF_ENDPOINT`, else huggingface.co).
        accept: is told what is about to be downloaded (nothing is stripped yet); what it raises is raised instead.

    Raises:
        InvalidRequest: not such an address, or `huggingface_hub` is not installed.
        NotFound: there is no such model or revision, or it may not be read without a token.
        VerificationError: an architecture that is not served, or a file that is not what the hub says.
        DiskFull: there is no space for it.
        StorageError: the hub can not be reached, or a download broke off.
    """
    parsed = _SOURCE.fullmatch(source)
    if parsed is None:
        raise InvalidRequest(f"{source!r} is no model of the hub; write hf://owner/name@revision", param="source")
    api = _api(endpoint)
    with _hub_errors(source, str(api.endpoint)):
        info = api.model_info(
            parsed["repo"], revision=parsed["revision"] or "main", files_metadata=True, timeout=_TIMEOUT_S
        )
        commit = _commit(source, info)
        wanted, skipped = _chosen(info)
        accept(HubCheckpoint(parsed["repo"], commit, _licence(info), skipped))
        require_space(into, sum(one.size or 0 for one in wanted.values()))
        _fetch(api, parsed["repo"], commit, wanted, into, progress)
    stripped = tuple(name for name in sorted(MAY_NAME_CODE & wanted.keys()) if _strip(into / name))
    return HubCheckpoint(parsed["repo"], commit, _licence(info), skipped, stripped)


def _api(endpoint: str | None) -> HfApi:
    try:
        from huggingface_hub import HfApi  # noqa: PLC0415 - an extra, and a second to import
    except ImportError as error:
        raise InvalidRequest("hf:// needs huggingface_hub; install acemath-registry[hub]", param="source") from error
    return HfApi(endpoint=endpoint, library_name="acemath-registry")


def _commit(source: str, info: ModelInfo) -> str:
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise NotFound(f"the hub names no commit for {source}; give one as @revision", param="source")
    return info.sha


def _chosen(info: ModelInfo) -> tuple[dict[str, RepoSibling], tuple[str, ...]]:
    """Files to download by name, and the names of the others."""
    files = {one.rfilename: one for one in info.siblings or ()}
    wanted = {name: one for name, one in files.items() if reject_reason(name) is None}
    if CONFIG_NAME not in wanted:
        raise VerificationError(RejectReason.FILE_MISSING, "the model has none; give another", file=CONFIG_NAME)
    return wanted, tuple(sorted(files.keys() - wanted.keys()))


def _fetch(
    api: HfApi, repo: str, commit: str, wanted: Mapping[str, RepoSibling], into: Path, progress: Progress
) -> None:
    advance = counter(progress, "downloading", sum(one.size or 0 for one in wanted.values()))
    for name in sorted(wanted, key=lambda name: (name != CONFIG_NAME, name)):
        path = Path(api.hf_hub_download(repo, name, revision=commit, local_dir=into, etag_timeout=_TIMEOUT_S))
        _check(path, wanted[name])
        if name == CONFIG_NAME:
            architecture_of(read_json(path, RejectReason.CONFIG_MALFORMED))  # before the gigabytes
        advance(path.stat().st_size)
    shutil.rmtree(into / ".cache", ignore_errors=True)  # the library's notes; what stays is refused by publish


def _check(path: Path, said: RepoSibling) -> None:
    """Compare a file with what the hub says of its content."""
    expected = said.blob_id if said.lfs is None else said.lfs.sha256
    found = _git_sha1(path) if said.lfs is None else sha256_file(path, lambda chunk: None)
    if found != expected:
        raise VerificationError(
            RejectReason.CHECKSUM_MISMATCH,
            f"has digest {found[:12]}…, the hub says {str(expected)[:12]}…; try again",
            file=path.name,
        )


def _git_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _strip(path: Path) -> bool:
    """Drop `auto_map` from a config; whether there was one."""
    document = read_json(path, RejectReason.CONFIG_MALFORMED)
    if document.pop("auto_map", None) is None:
        return False
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return True


def _licence(info: ModelInfo) -> str | None:
    said = info.card_data.get("license") if info.card_data is not None else None
    return said if isinstance(said, str) and said else None


@contextmanager
def _hub_errors(source: str, endpoint: str) -> Iterator[None]:
    from httpx2 import HTTPError  # noqa: PLC0415 - see `_api`
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except errors.GatedRepoError as error:
        raise NotFound(f"{source} asks for a login; set HF_TOKEN to one that may read it", param="source") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise NotFound(f"the hub has no {source}, or HF_TOKEN may not read it; check it", param="source") from error
    except errors.HFValidationError as error:
        raise InvalidRequest(f"{source} is no model of the hub: {error}", param="source") from error
    except errors.OfflineModeIsEnabled as error:
        raise InvalidRequest("HF_HUB_OFFLINE is set; unset it to read from the hub", param="source") from error
    except (HTTPError, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk's, which the caller explains
        said = f"{source} can not be read from the hub at {endpoint} ({type(error).__name__})"
        do = "check the network and the proxy (HTTPS_PROXY, HF_ENDPOINT), or try again later"
        raise StorageError(f"{said}; {do}") from error

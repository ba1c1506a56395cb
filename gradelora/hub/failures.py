"""What huggingface_hub and its HTTP client raise, as the named errors with their remedy.

No message of theirs is passed on: it may hold a signed address.
"""

import errno
import re

import httpx2
from huggingface_hub import errors as hub_errors

from gradelora.errors import (
    ChecksumMismatch,
    GatedRepo,
    GradeloraError,
    HubRefused,
    HubUnavailable,
    NotCached,
    NotEnoughDisk,
    RepoNotFound,
    RevisionNotFound,
    UnsupportedModel,
)

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
CONFLICTS = frozenset({409, 412})
# hf_xet raises Python's own ConnectionError for every answer that it does not like.
XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")


def named(error: BaseException, what: str, endpoint: str) -> GradeloraError | None:
    """The named error for one of theirs; None for what is not about the Hub.

    `what` says in words what was asked for, e.g. "openai/gpt-oss-120b at main".
    """
    repo_id = what.split()[0]
    match error:
        case GradeloraError():
            return error
        case hub_errors.GatedRepoError():
            return GatedRepo(
                f"{what}: gated; accept its terms at {endpoint}/{repo_id} and set HF_TOKEN to a token of that account"
            )
        case hub_errors.RepositoryNotFoundError():
            return RepoNotFound(
                f"{what}: no such repository at {endpoint}, or it is private; check base.repo_id,"
                " or set HF_TOKEN to a token that may read it"
            )
        case hub_errors.RevisionNotFoundError():
            return RevisionNotFound(
                f"{what}: the repository has no such branch, tag or commit; set base.revision to one that it has"
            )
        case hub_errors.RemoteEntryNotFoundError():
            return UnsupportedModel(
                f"{what}: a file that the listing names is not there; set base.revision to a commit"
            )
        case hub_errors.OfflineModeIsEnabled():
            return NotCached(
                f"{what}: not in the Hub cache, and HF_HUB_OFFLINE is set; unset it or fetch the model first"
            )
        case hub_errors.HfHubHTTPError() | httpx2.HTTPStatusError():
            return _by_status(error.response.status_code, what, endpoint)
        case hub_errors.LocalEntryNotFoundError():
            # Their word for "no answer, and nothing cached either": the cause is what happened.
            cause = named(error.__cause__, what, endpoint) if error.__cause__ else None
            return cause or HubUnavailable(f"{what}: {endpoint} did not answer; check the network")
        case httpx2.TransportError():
            return HubUnavailable(
                f"{what}: no answer from {endpoint} ({type(error).__name__}); check network and proxy"
            )
        case ConnectionError() | TimeoutError():
            status = XET_STATUS.search(str(error))
            if status:
                return _by_status(int(status[1]), what, endpoint)
            return HubUnavailable(
                f"{what}: no answer from the Hub's storage ({type(error).__name__}); check the network"
            )
        case PermissionError() if type(error).__name__ == "XetAuthenticationError":
            return _by_status(401, what, endpoint)
        case RuntimeError(__cause__=BaseException() as cause):
            # Their word for a file that could not be sent; the cause is what happened.
            return named(cause, what, endpoint)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return NotEnoughDisk(f"{what}: the file system of the Hub cache is full; free space or set HF_HUB_CACHE")
        case OSError() if "Consistency check failed" in str(error):
            return ChecksumMismatch(f"{what}: a file arrived with another size than announced")
        case _:
            return None


def _by_status(status: int, what: str, endpoint: str) -> GradeloraError:
    if status in RETRIED_STATUSES or status >= 500:
        return HubUnavailable(f"{what}: {endpoint} answered {status}; try again later")
    if status in (401, 403):
        return GatedRepo(f"{what}: access refused ({status}); set HF_TOKEN to a valid token that may do that")
    if status in CONFLICTS:
        return HubRefused(f"{what}: {endpoint} answered {status}: somebody else wrote there meanwhile; run again")
    return HubRefused(f"{what}: {endpoint} answered {status}; check HF_ENDPOINT and the proxy")


def retry_after_s(error: BaseException | None) -> float | None:
    """Seconds that the server asked to wait: Retry-After or the reset time of `ratelimit`."""
    while error is not None:
        if isinstance(error, hub_errors.HfHubHTTPError | httpx2.HTTPStatusError):
            asked = error.response.headers.get("retry-after", "").strip()
            if asked.isdigit():
                return float(asked)
        error = error.__cause__
    return None

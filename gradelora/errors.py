"""The named errors: each says what, where, measured against needed, and the next step.

`exit_code` 2: something that the user can mend before any heavy work.
`exit_code` 1: the work itself failed.  A retry needs a `Transient`.
Every class takes one message, so that an error keeps its name across processes.
"""


class GradeloraError(Exception):
    """Base of all errors that are told to the user in one sentence."""

    exit_code = 1


class BadConfig(GradeloraError):
    """The configuration cannot be run; names the field and the remedy."""

    exit_code = 2


class BadData(GradeloraError):
    """The data files block the run; names file, place and code."""

    exit_code = 2


class NotEnoughDisk(GradeloraError):
    """A file system is too small for what the run will write."""

    exit_code = 2


class NotEnoughMemory(GradeloraError):
    """A GPU or the host cannot hold the run at its peak."""

    exit_code = 2


class NotEnoughGpus(GradeloraError):
    """More processes are asked for than there are GPUs."""

    exit_code = 2


class MissingTool(GradeloraError):
    """A compiler, driver or library that the run needs is absent."""

    exit_code = 2


class UnsupportedModel(GradeloraError):
    """The base model's architecture, files or chat template cannot be used as configured."""

    exit_code = 2


class RepoNotFound(GradeloraError):
    """The Hub has no such repository, or hides it from this token."""

    exit_code = 2


class RevisionNotFound(GradeloraError):
    """The repository has no such branch, tag or commit."""

    exit_code = 2


class GatedRepo(GradeloraError):
    """The repository wants its terms accepted, or a token that may read it."""

    exit_code = 2


class HubRefused(GradeloraError):
    """The Hub, or what answers in its place, will not do what it was asked, however often."""

    exit_code = 2


class NotCached(GradeloraError):
    """Offline, and the Hub cache does not hold what is asked for."""

    exit_code = 2


class KeyMismatch(GradeloraError):
    """A checkpoint and the model built for it differ in their keys."""


class LossMisplaced(GradeloraError):
    """The batch that training would see puts loss elsewhere than on the targets."""


class MergeDiffers(GradeloraError):
    """The merged model does not score as base and adapter do, or has lost too much of the adapter."""

    exit_code = 2


class TargetTooLong(GradeloraError):
    """Header and target alone do not fit into max_length."""

    exit_code = 2


class Damaged(GradeloraError):
    """A sealed artifact no longer matches its receipt."""


class MirrorUnreachable(GradeloraError):
    """The mirror of the store cannot be read or written: address, network or credentials."""

    exit_code = 2


class CheckFailed(GradeloraError):
    """A library that judges (Great Expectations) failed itself: a fault, never bad data."""


class ChildFailed(GradeloraError):
    """A child process ended with a non-zero exit code or at its deadline."""


class TrainingDiverged(GradeloraError):
    """Loss or gradient is no number any more; the same settings would end there again."""


class BudgetReached(GradeloraError):
    """Training has used up its hours or its money; it is sealed, and goes on with a larger budget."""

    exit_code = 2


class Cancelled(GradeloraError):
    """Training was told to stop; it is sealed where it stood, and the next run goes on from there."""


class Transient(GradeloraError):
    """The same call may succeed later."""


class HubUnavailable(Transient):
    """The Hub or its CDN did not answer, or answered 429 or 5xx."""


class ChecksumMismatch(Transient):
    """A downloaded file is not the one that the Hub announced."""


class RankLost(Transient):
    """A training process died; the next attempt goes on from the newest sealed checkpoint."""


def by_name(name: str) -> type[GradeloraError]:
    """The error class of that name; `ChildFailed` for one that is not ours."""
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, GradeloraError):
        return found
    return ChildFailed

"""The exceptions that a user can act upon."""


class HrnetppError(ValueError):
    """Bad input: the message names the file or value, the record, and what to do about it."""


class Preempted(HrnetppError):
    """The scheduler asked the process to end; everything is saved, and the same command goes on."""

    EXIT_CODE = 75  # "temporary failure" among the BSD exit codes

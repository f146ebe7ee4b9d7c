"""What ends a command: mistakes that a user can mend, and being asked to end."""


class HrnetppError(ValueError):
    """Bad input: the message names the file or value, the record, and what to do about it."""


class Preempted(SystemExit):
    """The scheduler asked the process to end; everything is saved, and the same command goes on."""

    # No kind of Exception, so that nothing that answers bad input can take it for that.
    EXIT_CODE = 75  # "temporary failure" among the BSD exit codes

    def __init__(self, message: str):
        super().__init__(message)
        self.code = self.EXIT_CODE

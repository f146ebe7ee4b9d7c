"""The one exception for input that a user can mend."""


class HrnetppError(ValueError):
    """Bad input: the message names the file or value, the record, and what to do about it."""

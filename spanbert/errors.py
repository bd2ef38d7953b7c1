"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input or a wrong flag. The message is one sentence or two: what (file, line, record), expected what, do what.

    The command line prints it after ``error:`` and exits with status 2; nothing else in the message is for machines.
    """

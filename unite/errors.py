"""The one exception that stands for a mistake of the user rather than of the program."""


class UserError(ValueError):
    """Wrong input: the message names the value seen, what is allowed and the setting to change, in one line.

    The command line prints it without a stack trace and ends with exit code 2; in Python it is a ValueError.
    """

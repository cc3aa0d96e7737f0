"""The one exception for what a user can mend."""


class UserError(ValueError):
    """Bad input. The message is one paragraph: the key, its value, and the remedy.

    Entry points print the message alone (no traceback) and exit with code 2.
    """

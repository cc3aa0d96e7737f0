"""The one exception for input that cannot be analyzed."""


class TableError(ValueError):
    """Unusable runs or table. The message is one paragraph: what, where, and the remedy.

    Entry points print the message alone (no traceback) and exit with code 2.
    """

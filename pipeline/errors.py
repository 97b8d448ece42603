"""The one exception that is shown to people without a traceback."""


class UserError(ValueError):
    """A mistake in a config, a path or an input file.

    The message is one line: what is wrong, where (file, key, row), and what to do. The command line prints it and
    exits with 1; every other exception is a defect of this program and keeps its traceback.
    """

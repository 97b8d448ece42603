"""The exceptions that are shown to people without a traceback."""


class UserError(ValueError):
    """A mistake in a config, a path or an input file.

    The message is one line: what is wrong, where (file, key, row), and what to do. The command line prints it and
    exits with 1; every other exception is a defect of this program and keeps its traceback.
    """


class Ended(SystemExit):
    """A run that ended before its result through no mistake and no defect: it was told to stop, or training diverged.

    The message is one line: what happened and how to go on. Python prints it and exits with 1.
    """

"""The errors that are meant for a person: one sentence that says what is wrong and what to do about it."""


class UserError(Exception):
    """Bad input or an impossible request. The command line prints the sentence and exits with status 2."""


class NonFiniteError(RuntimeError):
    """A loss, a reward or a gradient is not finite. The message names the role and the step; nothing is replaced."""

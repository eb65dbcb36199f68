"""The errors that are meant for a person: one sentence that says what is wrong and what to do about it."""


class UserError(Exception):
    """Bad input or an impossible request. The command line prints the sentence and exits with status 2."""


class CallError(ValueError):
    """A call to reward models that cannot be answered as it is. Whoever called is told the message, from outside too.

    A reward class of one's own may raise it, to refuse images or prompts.
    """


class NonFiniteError(RuntimeError):
    """A loss, a reward or a gradient is not finite. The message names the role and the step; nothing is replaced."""


class RewardUnavailableError(RuntimeError):
    """No answer within the deadline: the service is gone, unreachable or too slow. The message says which."""


class RewardAwayError(RewardUnavailableError):
    """No answer from a service within the deadline, which asking again later may cure."""


class RoleFailure(RuntimeError):
    """A role died or did not answer in its time. The run resumes from its last checkpoint by the same command."""


class RunFolderLost(RuntimeError):
    """The folder of a run was removed while it trained. The message says what is left."""


class JobFailed(RuntimeError):
    """A job on a cluster failed, was stopped, or is out of sight. The message says which."""


class StorageUnavailable(RuntimeError):
    """A disk or a store that failed at last. The message says how, and what is left."""


# Each says what is wrong to a person: a cause by itself, whoever else breaks off.
TOLD = (UserError, CallError, NonFiniteError, RewardUnavailableError, StorageUnavailable)

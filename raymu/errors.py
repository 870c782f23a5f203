"""The things that can go wrong in a way raymu knows how to handle."""


class InputError(ValueError):
    """What the user asked for cannot work; raised before any compute is spent (exit code 2)."""


class NodeError(InputError):
    """A node of the cluster is not fit for the sweep: it has other versions, or does not see the results; or nodes
    failed it, again and again.
    """


class StorageError(RuntimeError):
    """A sweep's rows cannot be stored any more, and it ends: the disk is full, the storage does not come back, or
    another writer took the sweep over. What is stored stays (exit code 2).
    """


class Diverged(ArithmeticError):
    """A trial's loss or features are no longer finite: a result (score 0), not a failure."""


class Undefined(ValueError):
    """A metric has no value on such data; the message says why. In a row it is None, never a silent 0."""

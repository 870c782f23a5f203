"""The things that can go wrong in a way raymu knows how to handle, and how they are said."""

import re

OPEN = ("endpoint_override", "region", "scheme")  # parameters of a storage's URI that are no secrets
MOST = 10_000  # characters of a message that are kept


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


def described(error: BaseException) -> str:
    """'KeyError: message', whatever the error's own code does when it is asked for its message."""
    try:
        message = str(error)
    except BaseException:
        message = "its message cannot be read"
    return f"{type(error).__name__}: {message[:MOST]}"


def without_secrets(text: str) -> str:
    """A text in which what looks like a URI shows no name of a user, no password, and no parameter that may be secret,
    also where the URI is not well-formed.
    """
    text = re.sub(r"://([^/:@]*:.*|[^/@]*)@", "://***@", text, flags=re.DOTALL)
    text = re.sub(r"""[^\s/:@'"]+:[^\s/@'"*]+@""", "***@", text)
    text = re.sub(r"""(://[^/:@\s]*:)(?!\d{1,5}(?:[/?#\s:,;)'"]|$))[^/\s]+""", r"\1***", text)
    return re.sub(r"(:/[^\s?#;]*)([?#;])(\S+)", _without_parameters, text)


def _without_parameters(found: re.Match[str]) -> str:
    pairs = [one.partition("=") for one in re.split("[?&#;]", found[3])]
    shown = [f"{name}={value}" if name in OPEN else f"{name}=***" if mark else "***" for name, mark, value in pairs]
    return found[1] + found[2] + "&".join(shown)

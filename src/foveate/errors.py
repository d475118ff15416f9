"""What goes wrong, said in one sentence.

Every error that a user can cause is a :class:`FoveateError`: what happened, where, what was
expected and how to mend it. The command line prints the sentence and leaves with exit code 2;
a script can catch the class. Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

__all__ = ["FoveateError"]


class FoveateError(Exception):
    """Bad input or an environment that cannot do what was asked; the message is for the user."""

    exit_code = 2

"""Errors a user can act on: what, where, the value, the limit and the remedy, in one sentence."""


class UserError(Exception):
    """Something the user can mend: a recipe, a file, a flag. Ends a command with exit status 2."""


class BadExample(Exception):  # noqa: N818 - a condition of the data, not of the program
    """One example cannot be explained; recorded in ``failures/``, its neighbours go on."""


class Outage(OSError):  # noqa: N818 - a condition of the place, not of the program
    """A dataset's bucket does not answer. No example is to blame: the stage stops, and the same
    command goes on from there."""


class UserInterrupt(Exception):  # noqa: N818 - a wish, not an error
    """Ctrl-C during a stage; says how far it got. Ends a command with exit status 130."""

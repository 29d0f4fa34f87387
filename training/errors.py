"""Errors of several packages that a user can correct."""


class RecipeError(ValueError):
    """A recipe that cannot be run. The message names the key, what was found and what is expected."""

    exit_status = 2

"""Errors that a person can put right, raised from more than one room."""


class RecipeError(ValueError):
    """A recipe that cannot be run, in a sentence that says which key, what was found and what is expected."""

    exit_status = 2

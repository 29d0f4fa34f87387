"""Define the error of decisions that cannot be made."""


class DecisionError(ValueError):
    """Raised for labels, vectors or options that decisions cannot be made from; says what was found and what is expected."""

    exit_status = 2

"""Define the error that an option with an unusable value raises."""


class OptionError(ValueError):
    """Raised for an option whose value cannot be used; says which option, what was found and what is expected."""

    exit_status = 2

"""The error of an option whose value cannot be used."""


class OptionError(ValueError):
    """An option whose value cannot be used: which option, what was found, what is expected."""

    exit_status = 2

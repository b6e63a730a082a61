"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """Bad input: one clear sentence that names what was wrong and what is allowed.

    The command line prints it alone and exits with status 2; a notebook shows it as the exception's message.
    """

"""What can go wrong without this program being at fault, each said in one sentence."""

from __future__ import annotations

import builtins
import errno
import re
from pathlib import Path

LONGEST_VALUE = 100  # characters of a quoted value that a sentence shows


class UserError(Exception):
    """Bad input: one clear sentence that names what was wrong and what is allowed.

    The command line prints it alone and exits with status 2; a notebook shows it as the exception's message.
    """


class NotebookFailed(Exception):
    """A notebook stopped on an error that is not the user's to mend; ``saved`` is where it can be read."""

    def __init__(self, message: str, saved: Path):
        super().__init__(message)
        self.saved = saved

    def __reduce__(self) -> tuple[type[NotebookFailed], tuple[str, Path]]:
        """From another process it comes whole."""
        return type(self), (str(self), self.saved)


# What to do about an operating system's refusal.
REMEDIES = {
    errno.EACCES: "change its permissions, or keep your own runs elsewhere with COLLAPSE_RUNS=FOLDER",
    errno.EPERM: "change its permissions, or keep your own runs elsewhere with COLLAPSE_RUNS=FOLDER",
    errno.EROFS: "keep your runs elsewhere with COLLAPSE_RUNS=FOLDER",
    errno.ENOSPC: "make room, and the same command goes on from there",
    errno.EDQUOT: "make room, and the same command goes on from there",
    errno.EFBIG: "raise the limit on the size of a file (`ulimit -f`), and the same command goes on from there",
    errno.ENOENT: "check the path",
    errno.EISDIR: "a file is wanted there, not a folder",
    errno.ENOTDIR: "a folder is wanted there, not a file",
    errno.EEXIST: "a folder is wanted there, not a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.EIO: "the disk may be failing",
}


def explained(error: BaseException) -> str | None:
    """The sentence for an error that the user, or the machine's owner, can do something about; None for a mistake in this program.

    Where a path or a line can be named, whoever reads the file raises a ``UserError`` itself: this is the net below.
    """
    text = first_line(error)
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("collapse_lib"):
        return f"this needs the Python package '{error.name}', which is not installed; `make extras` installs all."
    if _is_about_memory(error, text):
        return (
            "There is not enough memory for this; take a smaller model, batch or corpus (`collapse plan` says beforehand what a run needs), "
            "or a machine with more of it."
        )
    if "No space left on device" in text or "disk is full" in text:  # not every library says it with an OSError
        return _refused(error, errno.ENOSPC, "No space left on device")
    if isinstance(error, TimeoutError) and error.errno is None:  # an OSError that is about no file
        return f"An answer was waited for in vain ({text.rstrip('.') or 'nothing says whose'}); the same command tries again."
    if isinstance(error, OSError):
        return _refused(error, error.errno, error.strerror or text)
    if isinstance(error, UnicodeDecodeError):
        return f"A file is not UTF-8 text (byte 0x{error.object[error.start]:02x} does not fit); convert it first (--debug shows which it is)."
    if isinstance(error, UnicodeEncodeError):
        return f"A character cannot be written as {error.encoding}; for output, set PYTHONIOENCODING=utf-8, and in a value leave it out."
    if isinstance(error, RecursionError):
        return "A file or value is nested too deeply to be read (--debug shows where)."
    if "ValidationError" in [kind.__name__ for kind in type(error).__mro__] and hasattr(error, "errors"):  # pydantic's, which need not be there
        return f"A value has not the form it should have: {' '.join(str(error).split())} (--debug shows where)."
    if isinstance(error, RuntimeError) and "home directory" in text:
        return "A path begins with '~' and the name of a user who is not on this machine; give the path in full."
    return None


def rebuilt(name: str, text: str) -> Exception:
    """The exception that a kernel reports by the name of its class and its text, as far as ``explained`` needs it."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return Exception(text)
    if issubclass(kind, UnicodeError):
        return UserError(f"A text is not in the encoding it should be in: {text}.")
    if issubclass(kind, OSError) and (said := re.match(r"\[Errno (\d+)\] (.*?)(?:: '(.*)')?$", text, re.DOTALL)):
        return OSError(int(said[1]), said[2], said[3])
    return kind(text)


def one_line(sentence: str) -> str:
    """A sentence as it is printed: what would break or disturb the line is spelled out, and quoted values lose their middle when they are long.

    Paths stay whole, so that they can be copied; only one of their names can be cut.
    """

    def shortened(quoted: re.Match[str]) -> str:
        cut = re.sub(rf"[^/]{{{LONGEST_VALUE + 1},}}", lambda long: f"{long[0][:60]}…{long[0][-20:]}", quoted[2])
        return f"{quoted[1]}{cut}{quoted[1]}"

    visible = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in sentence)
    return re.sub(r"(?<![^\s(\[=,:])(['\"])(?=\S)(.*?)\1(?!\w)", shortened, visible)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, without the full stop at its end."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def _is_about_memory(error: BaseException, text: str) -> bool:
    said = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return said or "can't allocate memory" in text or "out of memory" in text  # torch's words, on a CPU and on a GPU


def _refused(error: BaseException, number: int | None, reason: str) -> str:
    file = getattr(error, "filename", None)
    what = f"'{file}'" if isinstance(file, str | Path) else "A file, or the output,"
    return f"{what} cannot be read or written ({reason}); {REMEDIES.get(number, '--debug shows where')}."

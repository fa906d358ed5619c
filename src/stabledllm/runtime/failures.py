"""Turns failures of files and of the machine into sentences; any other error is a mistake of this library."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stabledllm.errors import Diverged, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SYSTEM = {
    errno.ENOENT: "expected a file or folder, found nothing",
    errno.EISDIR: "expected a file, found a folder",
    errno.ENOTDIR: "expected a folder, found a file on the way to it",
    errno.EEXIST: "expected a new file or folder, found one that is there already",
    errno.ENAMETOOLONG: "expected a shorter name, found one that the file system does not take",
    errno.ELOOP: "expected a file or folder, found links that lead in a circle",
    errno.EACCES: "expected one that this user may read and write, found no permission",
    errno.EPERM: "expected one that this user may read and write, found no permission",
    errno.EROFS: "expected a file system that can be written, found one that is read-only",
    errno.EIO: "expected a disk that can be read and written, found that it fails",
    errno.EMFILE: "expected few enough open files, found the limit reached",
    errno.ENOTEMPTY: "expected an empty folder, found files in it",
    errno.EINVAL: "expected a name or content that the file system takes, found one that it does not",
}
"""For each error number of the operating system, what it means for a path."""
_BROKEN = {
    "SafetensorError": "safetensors",
    "BadZipFile": "a zip archive",
    "UnpicklingError": "what torch.save writes",
    "JSONDecodeError": "JSON",
    "YAMLError": "YAML",
    "TarError": "a tar archive",
    "EOFError": "a whole file",
    "UnidentifiedImageError": "a PNG or JPEG picture",
    "DecompressionBombError": "a picture of at most 178 million pixels",
    "TemplateError": "a chat template that works",
}
"""Errors of other libraries' readers, by name since none of them is imported here, with what the reader expected."""
_TORCH_FILES = ("PytorchStreamReader", "PytorchStreamWriter", "inline_container")
"""Words in torch's RuntimeErrors about files; any other RuntimeError may be a mistake of ours."""


def sentence(error: BaseException, path: object = None) -> str | None:
    """The sentence on an error of the input, a file or the machine; None for a mistake in this library.

    Args:
        path: the file that was being read or written, for errors that do not name it.
    """
    if isinstance(error, UserError | Diverged):
        return str(error)
    names = {kind.__qualname__ for kind in type(error).__mro__}
    where = f"{path}: " if path is not None else ""
    if reader_names := names & _BROKEN.keys():
        return _of_reader(error, _BROKEN[reader_names.pop()], where)
    if isinstance(error, ModuleNotFoundError) and error.name not in (None, "stabledllm") and "." not in error.name:
        return f"{where}expected the package '{error.name}', found it not installed; pip install it."
    if isinstance(error, OSError):
        return _of_system(error, where)
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start] if error.start < len(error.object) else 0
        return f"{where}expected text in UTF-8, found byte 0x{byte:02x} at place {error.start + 1}."
    if isinstance(error, UnicodeEncodeError):
        return f"{where}expected text in Unicode, found half of a character at place {error.start + 1}."
    text = _one_line(error)
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names or "can't allocate memory" in text:
        return f"{where}expected enough memory, found too little ({text or 'of the machine'})."
    if isinstance(error, RuntimeError) and any(mark in text for mark in _TORCH_FILES):
        return _of_reader(error, "what torch.save writes", where)
    return None


@contextmanager
def working_on(out: str | Path) -> Iterator[None]:
    """While this context is open, an error that is raised remembers the output being made, see :func:`outputs_of`."""
    try:
        yield
    except BaseException as error:
        error.stabledllm_outputs = [*outputs_of(error), Path(out)]
        raise


def outputs_of(error: BaseException) -> list[Path]:
    """The outputs that were being made when an error was raised, the innermost first."""
    return getattr(error, "stabledllm_outputs", [])


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that the disk is full, by its number or by the text of safetensors and torch."""
    text = str(error)
    marks = ("No space left on device", "File too large", "os error 28", "os error 27", "unexpected pos")
    return getattr(error, "errno", None) in _FULL or any(mark in text for mark in marks)


def _of_reader(error: BaseException, expected: str, where: str) -> str:
    if is_full_disk(error):
        return _full(where)
    return f"{where}expected {expected}, found something broken ({_one_line(error)})."


def _of_system(error: OSError, where: str) -> str:
    if error.filename is not None:
        where = f"{_shown(error.filename)}: "
    if is_full_disk(error):
        return _full(where)
    if error.errno is None:  # errors of transformers and the hub are sentences already
        return f"{where}{_one_line(error) or type(error).__name__}"
    meaning = _SYSTEM.get(error.errno, "expected the file system to do as asked, found that it does not")
    return f"{where}{meaning} ({error.strerror or type(error).__name__})."


def _full(where: str) -> str:
    return f"{where}expected room on the disk, found none; free some and run the same command again."


def _shown(name: object) -> str:
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]

"""The one search for audio files below a folder, for preparing and for predicting."""

import collections
import dataclasses
import os

from etils import epath

from mgc_jax import console
from mgc_jax.data.audio import EXTENSIONS
from mgc_jax.data.tracks import listed


@dataclasses.dataclass
class Found:
    """What is below a folder.

    Attributes:
        audio: paths of the files that are named like audio, sorted.
        others: how many other files have which ending, in lower case.
        links: paths of the links that were passed over, each with the path by which what it leads
            to is found.
    """

    folder: str
    audio: list[str] = dataclasses.field(default_factory=list)
    others: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    links: dict[str, str] = dataclasses.field(default_factory=dict)

    def say_what_was_passed_over(self) -> None:
        """One log line for the other files, one for the links, if there are any."""
        if self.others:
            endings = (
                f"{count} {ending if ending.isprintable() else repr(ending)}"
                if ending
                else f"{count} without an ending"
                for ending, count in self.others.most_common()
            )
            total = self.others.total()
            console.log.info("%s: %d other files: %s", self.folder, total, listed(endings))
        if self.links:
            link, target = next(iter(self.links.items()))
            console.log.info(
                "%s: %d links passed over, as what they lead to is found without them: %r is %r",
                self.folder,
                len(self.links),
                link,
                target,
            )


def find_audio(folder: str | os.PathLike) -> Found:
    """Searches a folder, to any depth, for files that are named like audio.

    Hidden files and folders are passed over. Links are followed, but no folder is searched twice
    and no file found twice: a link to what lies below the folder itself is passed over, and of
    several links to one place outside the first is followed. So the search ends however the links
    lie. A folder that is named like audio is a folder. What cannot be searched is said, and the
    rest goes on.

    Args:
        folder: local, or with a scheme that etils.epath knows (`gs://`).
    """
    top = os.fspath(folder)
    found = Found(top)
    real_top = real_folder(top)
    seen = {}  # where a folder or an audio file really is, to the path that found it
    todo = [(top, real_top, False)]  # no recursion: folders may be deeper than Python's stack
    while todo:
        here, real_here, by_link = todo.pop()
        if real_here in seen:
            if by_link:
                found.links[here] = seen[real_here]
            continue
        seen[real_here] = here
        below = []
        for name, is_folder, is_link in _entries(here):
            path = os.path.join(here, name)
            real = os.path.realpath(path) if is_link else os.path.join(real_here, name)
            if is_link and _leads_back(real, is_folder, real_here, real_top):
                found.links[path] = real
            elif is_folder:
                below.append((path, real, is_link))
            elif _ending(name) not in EXTENSIONS:
                found.others[_ending(name)] += 1
            elif seen.setdefault(real, path) != path:
                found.links[path] = seen[real]
            else:
                found.audio.append(path)
        todo += reversed(below)
    found.audio.sort()
    return found


def subfolders(folder: str | os.PathLike) -> list[str]:
    """The names of the folders in a folder that are not hidden, sorted."""
    return [name for name, is_folder, _ in _entries(os.fspath(folder)) if is_folder]


def real_folder(folder: str | os.PathLike) -> str:
    """The one name of a folder: absolute and without links, unless it is on no local disk."""
    folder = os.fspath(folder)
    return folder if "://" in folder else os.path.realpath(folder)


def is_below(path: str, folder: str) -> bool:
    """Whether a path is that of a folder, or of what is in it, by the text alone."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _entries(folder: str) -> list[tuple[str, bool, bool]]:
    """The entries of a folder that are not hidden, sorted: name, whether a folder, whether a link.

    Of a link it is told whether it leads to a folder.
    """
    try:
        if "://" in folder:
            entries = [(path.name, path.is_dir(), False) for path in epath.Path(folder).iterdir()]
        else:
            with os.scandir(folder) as scan:
                entries = [
                    (entry.name, os.path.isdir(entry.path), True)
                    if entry.is_symlink()
                    else (entry.name, entry.is_dir(), False)
                    for entry in scan
                ]
    except OSError as error:
        console.log.warning("%s cannot be searched: %s", _short(folder), error.strerror or error)
        return []
    return sorted(entry for entry in entries if not entry[0].startswith("."))


def _leads_back(target: str, is_folder: bool, here: str, top: str) -> bool:
    """Whether a link in the folder `here` leads to what is found without it, or to above itself.

    Args:
        target, here: where the link leads and lies, without links.
        is_folder: whether it leads to a folder.
        top: the folder that is searched.
    """
    if not is_folder and (_ending(target) not in EXTENSIONS or not os.path.exists(target)):
        return False
    if is_below(here, target) or is_below(top, target):
        return True
    inside = target[len(top) :] if is_below(target, top) else ""
    return bool(inside) and not any(part.startswith(".") for part in inside.split(os.sep))


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _short(path: str) -> str:
    return path if len(path) < 200 else f"{path[:100]}...{path[-50:]}"

"""Anyone's audio files as a data set: genres from folders, a table or tags, and lasting splits."""

import collections
import os
from collections.abc import Callable, Iterable, Mapping

from etils import epath

from mgc_jax import console
from mgc_jax.data.folders import Found, find_audio, is_below, real_folder, subfolders
from mgc_jax.data.tables import read_table
from mgc_jax.data.tags import Tags, read_tags
from mgc_jax.data.tracks import (
    Listing,
    Skipped,
    Track,
    check_folder,
    hash_of,
    listed,
    share_of,
    split_named,
    unify_genres,
    unlisted,
    warn_of_gaps,
)
from mgc_jax.errors import InputError

# Upper ends of the shares of a split by hash: 80, 10 and 10%.
_SHARES = {"train": 0.8, "validation": 0.9, "test": 1.0}
_VALIDATION_SHARE = 0.1  # of train, where folders name train and test only

Rows = Mapping[str, list[dict[str, str]]]  # a file's name to what a table says of it


class _Files:
    """Files by name, which is their path below the root, until each has a genre and a split.

    Attributes:
        paths: those still in question, by name.
        genres, splits, tags: of the files, by name.
        skipped, left_out, source: as in `Listing`.
        split_folders: the first folders below the root, each with the split that it is named
            after; empty if they are not named so.
        levels: how many folders of a name are no albums: those of a split and of a genre.
    """

    def __init__(self, found: Found):
        """Takes all that was found, but for names that are not UTF-8."""
        self.root = found.folder
        self.paths = {self.name_of(path): path for path in found.audio}
        self.genres: dict[str, str] = {}
        self.splits: dict[str, str] = {}
        self.tags: dict[str, Tags] = {}
        self.skipped: list[Skipped] = []
        self.left_out: list[Skipped] = []
        self.source = {"folder": real_folder(self.root)}
        self.split_folders = _split_folders(self.paths)
        self.levels = 1 if self.split_folders else 0
        for name in list(self.paths):
            try:
                hash_of(name)
            except UnicodeEncodeError:
                path = self.paths.pop(name)
                self.skipped.append((unlisted(path), "file name is not UTF-8: rename it"))

    def name_of(self, path: str) -> str:
        """A path below the root without the root."""
        return path[len(self.root) :].lstrip("/")

    def read_rows(self, table: str | os.PathLike | None, flag: str, column: str) -> Rows:
        """Reads a table about the files; takes in those that it names and that are not there.

        Args:
            table: columns `path`, the one named, and perhaps `split`; none gives no rows.
            flag: that named the table.
            column: that the table must have.

        Raises:
            InputError: it cannot be read, or names none of the files that are there.
        """
        rows = collections.defaultdict(list)
        if not table:
            return rows
        for row in read_table(table, flag, ("path", column), optional=("split",)):
            rows[_name_below(row["path"], self.root, self.paths)].append(row)
        if self.paths and not any(name in rows for name in self.paths):
            first = next(iter(rows), "none")
            raise InputError(
                f"{flag}={table} names no file that is below --audio_dir={self.root}: its first "
                f"path is {first!r}, that of the first file {min(self.paths)!r}"
            )
        for name in rows:
            self.paths.setdefault(name, os.path.join(self.root, name))
        return rows

    def read_tags(self) -> None:
        """Reads the tags of all files."""
        with console.progress_bar(
            total=len(self.paths), description="reading tags", unit="file"
        ) as bar:
            for name, path in self.paths.items():
                self.tags[name] = read_tags(path)
                bar.update()

    def skip(self, name: str, reason: str) -> None:
        """Takes out a file that cannot be used."""
        self.skipped.append((self._take(name), reason))

    def leave_out(self, name: str, reason: str) -> None:
        """Takes out a file that is no part of the data set."""
        self.left_out.append((self._take(name), reason))

    def listing(self) -> Listing:
        """What has become of the files; the tracks sorted by name."""
        tracks = [
            Track(hash_of(name), path, self.genres[name], self.splits[name])
            for name, path in sorted(self.paths.items())
        ]
        return Listing(tracks, self.skipped, self.left_out, self.source)

    def _take(self, name: str) -> Track:
        return Track(hash_of(name), self.paths.pop(name), self.genres.pop(name, ""), "")


def read_folder(
    root: str | os.PathLike,
    splits_csv: str | os.PathLike | None = None,
    group_by: str | None = None,
    labels_csv: str | os.PathLike | None = None,
    labels: str = "folders",
) -> Listing:
    """Lists audio files, sorted by path, with genres from their folders, a table or their tags.

    Where neither a table nor the first folders' names (train, test, ...) give the splits, a hash of
    the group that a file belongs to decides, 80/10/10 on average. It depends on nothing else, so
    that no file changes sides when others are added. A track's id is a hash of its path below the
    root.

    Args:
        root: the folder of the genres' folders, `ROOT/genre/**/*.ext`.
        splits_csv: columns `path` (below root) and `split` (train, validation or test, or as
            people abbreviate them).
        group_by: what shares one split: `file`; `parent`, the files of a folder below a genre's;
            `artist`, by the files' tags. Default: `parent` where there are such folders.
        labels_csv: columns `path`, `genre`, and `split` if the table decides on that too.
        labels: `folders`, or `tags`: the files' own.

    Returns:
        The tracks; skipped are files without a genre, with a name that is not UTF-8, and those that
        a table lists twice, not at all, or under an unknown split. Files without a genre tag, and
        those that `labels_csv` does not list, are left out.

    Raises:
        InputError: the folder or a table is missing, a table has no such columns, two options do
            not fit together, fewer than two genres are found, or folders named as splits lack test.
    """
    check_folder(epath.Path(root), "the one that holds a folder for each genre")
    if labels_csv and labels == "tags":
        raise InputError("--labels_csv and --labels=tags both give the genres: choose one")
    found = find_audio(root)
    found.say_what_was_passed_over()
    files = _Files(found)
    label_rows = files.read_rows(labels_csv, "--labels_csv", "genre")
    split_rows = files.read_rows(splits_csv, "--splits_csv", "split")
    if labels == "tags" or group_by == "artist":
        files.read_tags()
    if labels_csv:
        _label_by_table(files, label_rows)
        files.source["genres"] = f"by {labels_csv}"
    elif labels == "tags":
        _label_by_tags(files)
        files.source["genres"] = "by tags"
    else:
        _label_by_folder(files, found)
        files.source["genres"] = "by folders"
    _unify_genres(files)
    _check_genres(files, labels_csv is None and labels == "folders")

    if splits_csv:
        _split_by_table(files, split_rows, "splits", group_by)
        files.source["splits"] = f"by {splits_csv}"
    elif any("split" in row for rows in label_rows.values() for row in rows):
        _split_by_table(files, label_rows, "labels", group_by)
        files.source["splits"] = f"by {labels_csv}"
    elif files.split_folders:
        _split_by_folder(files, group_by)
        files.source["splits"] = "by folders"
    else:
        group_of = _choose_groups(files, group_by)
        files.splits = {name: _split_by_hash(group_of(name)) for name in files.paths}
        files.source["splits"] = "by hash"
    warn_of_gaps(files.listing().tracks)
    return files.listing()


def _split_folders(names: Iterable[str]) -> dict[str, str]:
    """The first folders of names, if all are named as splits and train is among them."""
    firsts = {name.partition("/")[0] for name in names if "/" in name}
    splits = {folder: split_named(folder) for folder in firsts}
    named = all(splits.values()) and "train" in splits.values()
    return {folder: split for folder, split in splits.items() if split} if named else {}


def _name_below(cell: str, root: str, names: Mapping[str, str]) -> str:
    """The name of a file that a table's cell means: below the root or absolute, with / or \\."""
    spellings = [cell, cell.strip(), cell.strip().replace("\\", "/")]
    for spelling in spellings:
        name = os.path.normpath(spelling)
        if os.path.isabs(name):
            name = os.path.relpath(name, root)
        if name in names:
            break
    return name


def _label_by_folder(files: _Files, found: Found) -> None:
    """Takes the folder below the root, or below a split's folder, for the genre."""
    for name in list(files.paths):
        folders = name.split("/")[:-1]
        if len(folders) <= files.levels or folders[0] == "..":
            files.skip(name, "no genre: not in a folder below --audio_dir")
        else:
            files.genres[name] = folders[files.levels]
    _leave_out_linked_twice(files, found)
    files.levels += 1
    held = {"/".join(name.split("/")[: files.levels]) for name in files.genres}
    for above in sorted(files.split_folders) or [""]:
        there = [os.path.join(above, name) for name in subfolders(os.path.join(files.root, above))]
        if empty := [folder for folder in there if folder not in held]:
            console.log.warning("no audio in the folders %s: no genres", listed(map(repr, empty)))


def _leave_out_linked_twice(files: _Files, found: Found) -> None:
    """Leaves out what links in two genres' folders lead to: which genre is right is unknown.

    A link to what lies below the root itself says nothing: its real place tells the genre.
    """
    for link, followed in found.links.items():
        if is_below(os.path.realpath(link), files.source["folder"]):
            continue
        name = files.name_of(link)
        folders = name.split("/") if os.path.isdir(link) else name.split("/")[:-1]
        if len(folders) <= files.levels:
            continue
        place = files.name_of(followed)
        for twice in [twice for twice in files.genres if is_below(twice, place)]:
            if files.genres[twice] != folders[files.levels]:
                files.leave_out(twice, f"linked from another genre's folder too: {name}")


def _label_by_table(files: _Files, rows: Rows) -> None:
    for name in list(files.paths):
        found = rows.get(name, [])
        if not found:
            files.leave_out(name, "not in the labels' CSV")
        elif name.startswith("../"):
            files.skip(name, "not below --audio_dir")
        elif len(found) > 1:
            files.skip(name, "listed twice in the labels' CSV")
        else:
            files.genres[name] = found[0]["genre"]


def _label_by_tags(files: _Files) -> None:
    for name in list(files.paths):
        if genre := files.tags.get(name, Tags()).genre:
            files.genres[name] = genre
        else:
            files.leave_out(name, "no genre in its tags")
    if files.left_out:
        console.log.warning(
            "%d of %d files have no genre in their tags: left out, such as %r",
            len(files.left_out),
            len(files.left_out) + len(files.paths),
            min(files.left_out)[0].path,
        )


def _unify_genres(files: _Files) -> None:
    """Gives the genres names that last."""
    names = unify_genres(files.genres.values())
    for name, genre in list(files.genres.items()):
        files.genres[name] = names[genre]
        if not names[genre]:
            files.skip(name, "no genre: its name is blank")


def _check_genres(files: _Files, by_folder: bool) -> None:
    """Raises InputError if there are fewer than two genres, with the folder that may be meant."""
    genres = set(files.genres.values())
    if len(genres) > 1:
        return
    if by_folder and not genres:
        raise InputError(f"no audio files in folders of genres below --audio_dir={files.root}")
    one = f"one genre only, {min(genres)!r}" if genres else "no genre"
    hint = "at least two are needed"
    if by_folder and (meant := _folder_of_folders(files.genres)):
        hint += f"; {meant} holds several folders with audio: --audio_dir={files.root}/{meant}?"
    raise InputError(f"--audio_dir={files.root} holds audio of {one}: {hint}")


def _folder_of_folders(names: Iterable[str]) -> str | None:
    """The highest folder below the root in which two folders or more hold audio."""
    held = collections.defaultdict(set)
    for name in names:
        folders = name.split("/")[:-1]
        for depth in range(1, len(folders)):
            held["/".join(folders[:depth])].add(folders[depth])
    several = [folder for folder, found in held.items() if len(found) > 1]
    return min(several, key=lambda folder: (folder.count("/"), folder), default=None)


def _split_by_table(files: _Files, rows: Rows, table: str, group_by: str | None) -> None:
    """Takes the splits from the table of splits or labels."""
    if group_by:
        raise InputError(f"--group_by={group_by} decides nothing: --{table}_csv gives the splits")
    for name in list(files.paths):
        found = rows.get(name, [])
        if len(found) != 1:
            reason = "listed twice in" if found else "not in"
            files.skip(name, f"{reason} the {table}' CSV")
        elif split := split_named(found[0]["split"]):
            files.splits[name] = split
        else:
            files.skip(name, f"unknown split {found[0]['split']!r}")


def _split_by_folder(files: _Files, group_by: str | None) -> None:
    """Takes the splits from the first folders' names; a missing validation is a tenth of train."""
    named = ", ".join(sorted(files.split_folders))
    splits = set(files.split_folders.values())
    if "test" not in splits:
        raise InputError(
            f"--audio_dir={files.root}: its folders {named} are taken as splits, but none is named "
            "test: add it, or let --splits_csv decide"
        )
    console.log.info("the folders %s are taken as splits, not as genres", named)
    group_of = None
    if "validation" not in splits:
        console.log.info("a tenth of train becomes the validation split")
        group_of = _choose_groups(files, group_by)
    elif group_by:
        raise InputError(f"--group_by={group_by} decides nothing: folders give the splits")
    for name in list(files.paths):
        split = files.split_folders.get(name.partition("/")[0])
        if split is None:
            files.skip(name, "not in the folder of a split")
            continue
        if split == "train" and group_of and share_of(group_of(name)) < _VALIDATION_SHARE:
            split = "validation"
        files.splits[name] = split


def _split_by_hash(group: str) -> str:
    return next(split for split, end in _SHARES.items() if share_of(group) < end)


def _choose_groups(files: _Files, group_by: str | None) -> Callable[[str], str]:
    """A function from a file's name to the group that shares one split; says what it chose."""
    depth = files.levels
    if files.source["genres"] != "by folders" and group_by != "parent":
        depth += 1  # a library by table or tags may be one folder of everything: that is no album

    def parent(name: str) -> str:
        return os.path.dirname(name) if name.count("/") > depth else name

    def artist(name: str) -> str:
        found = files.tags.get(name, Tags()).artist.casefold()
        return f"artist {found}" if found else parent(name)

    if group_by is None and any(parent(name) != name for name in files.paths):
        console.log.info(
            "the files of one folder (an album) share one split, as --group_by=parent says; "
            "--group_by=file parts them"
        )
    unknown = sum(not files.tags.get(name, Tags()).artist for name in files.paths)
    if group_by == "artist" and unknown:
        console.log.warning(
            "%d of %d files have no artist in their tags: grouped by folder",
            unknown,
            len(files.paths),
        )
    chosen = group_by or "parent"
    files.source["grouping"] = f"by {chosen}"
    return {"file": str, "parent": parent, "artist": artist}[chosen]

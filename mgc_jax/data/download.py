"""FMA's archives: fetched in pieces, checked and unpacked, whatever interrupts it."""

import hashlib
import os
import shutil
import zipfile
import zlib
from pathlib import Path

import requests

from mgc_jax import console
from mgc_jax.errors import InputError

ADDRESS = "https://os.unil.cloud.switch.ch/fma"
# Of each archive, as FMA publishes it.
SHA1 = {
    "fma_metadata": "f0df49ffe5f2a6008d7dc83c6915b31835dfe733",
    "fma_small": "ade154f733639d52e35e32f5593efe5be76c6d70",
    "fma_medium": "c67b69ea232021025fca9231fc1c7c1a063ab50b",
    "fma_large": "497109f4dd721066b5ce5e5f250ec604dc78939e",
}
_ATTEMPTS = 5
_MIB = 2**20
_BLOCK = 2**16  # what a break may lose, in bytes
_BREAKS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


def fetch(archive: str, folder: str | os.PathLike) -> Path:
    """Fetches and unpacks one of FMA's archives, unless that is done already.

    Args:
        archive: a key of `SHA1`.
        folder: keeps the archive, and beside it what was unpacked.

    Returns:
        The unpacked folder, of the archive's name.

    Raises:
        InputError: it cannot be fetched or unpacked, or what came has another SHA-1.
    """
    if "://" in os.fspath(folder):
        raise InputError(f"--download cannot unpack into {folder}: name a local --data_dir")
    url = f"{ADDRESS}/{archive}.zip"
    unpacked = Path(folder) / archive
    packed = Path(folder) / f"{archive}.zip"
    if unpacked.is_dir():
        return unpacked
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not packed.exists():
            _download(url, packed, SHA1[archive])
        _unpack(packed, unpacked)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{packed} is damaged: {error}; delete it and run again") from None
    except (requests.RequestException, OSError) as error:
        raise InputError(
            f"cannot fetch {url}: {error}. The same command goes on from where it stopped"
        ) from None
    return unpacked


def _download(url: str, path: Path, sha1: str) -> None:
    """Fetches a file in as many attempts as it needs; it has its name once it is whole."""
    part = path.with_suffix(".part")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _fetch_rest(url, part)
            break
        except _BREAKS:
            if attempt == _ATTEMPTS:
                raise
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha1").hexdigest()
    if found != sha1:
        part.unlink()
        raise InputError(
            f"{url} has the SHA-1 {found}, but FMA publishes {sha1}: it was deleted, run the "
            "command again"
        )
    part.replace(path)


def _fetch_rest(url: str, part: Path) -> None:
    """Appends what is missing of a file."""
    start = part.stat().st_size if part.exists() else 0
    with requests.get(url, headers={"Range": f"bytes={start}-"}, stream=True, timeout=60) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # it was whole
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            start = 0  # the server knows no ranges and sends all of it
        total = (start + int(answer.headers.get("Content-Length", 0))) // _MIB
        with (
            part.open("ab" if start else "wb") as file,
            console.progress_bar(
                total=total, description=f"fetching {part.stem}.zip", unit="MiB"
            ) as bar,
        ):
            for block in answer.iter_content(_BLOCK):
                file.write(block)
                bar.update(file.tell() // _MIB - bar.n)


def _unpack(packed: Path, folder: Path) -> None:
    """Unpacks an archive that holds one folder; the folder has its name once it is whole."""
    incomplete = folder.with_name(f"incomplete.{folder.name}")
    if incomplete.exists():
        shutil.rmtree(incomplete)  # of a run that was killed
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        with console.progress_bar(
            total=len(names), description=f"unpacking {packed.name}", unit="file"
        ) as bar:
            for name in names:
                archive.extract(name, incomplete)
                bar.update()
    (incomplete / folder.name).replace(folder)
    shutil.rmtree(incomplete)

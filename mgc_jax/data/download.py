"""FMA's archives: fetched, checked and unpacked through TFDS's download manager."""

import functools
import hashlib
import os

import requests
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import checksums, downloader

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
_BLOCK = 2**16  # what a break may lose


def fetch(archive: str, folder: str | os.PathLike) -> epath.Path:
    """Fetches and unpacks one of FMA's archives, unless that is done already.

    Args:
        archive: a key of `SHA1`.
        folder: keeps the archive, and below it what was unpacked.

    Returns:
        The unpacked folder, of the archive's name.

    Raises:
        InputError: it cannot be fetched, or what came has another SHA-1.
    """
    url = f"{ADDRESS}/{archive}.zip"
    manager = _Manager(download_dir=folder)
    for leftover in (epath.Path(folder) / "extracted").glob("incomplete.*"):
        leftover.rmtree()  # of a run that was killed
    try:
        return manager.download_and_extract(url) / archive
    except (requests.RequestException, OSError) as error:
        raise InputError(
            f"cannot fetch {url}: {error}. The same command goes on from where it stopped"
        ) from None


class _Downloader(downloader._Downloader):
    """TFDS's downloader begins anew after a break, and knows no SHA-1; this one goes on."""

    def _sync_download(
        self, url: str, destination_path: epath.Path, verify: bool = True
    ) -> downloader.DownloadResult:
        name = url.rpartition("/")[2]
        part = destination_path.parent / f"{name}.part"
        for attempt in range(_ATTEMPTS):
            try:
                _fetch_rest(url, part, verify)
                break
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                if attempt == _ATTEMPTS - 1:
                    raise
        found = checksums.compute_url_info(part, checksum_cls=hashlib.sha1)
        if found.checksum != (expected := SHA1[name.removesuffix(".zip")]):
            part.unlink()
            raise InputError(
                f"{url} has the SHA-1 {found.checksum}, but FMA publishes {expected}: it was "
                "deleted, run the command again"
            )
        path = part.replace(destination_path / name)
        return downloader.DownloadResult(path, checksums.UrlInfo(found.size, found.checksum, name))


class _Manager(tfds.download.DownloadManager):
    _downloader = functools.cached_property(lambda self: _Downloader())


def _fetch_rest(url: str, part: epath.Path, verify: bool) -> None:
    """Appends what is missing of a file."""
    start = part.stat().length if part.exists() else 0
    with requests.get(
        url, headers={"Range": f"bytes={start}-"}, stream=True, verify=verify, timeout=60
    ) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # it was whole
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            start = 0
        total = (start + int(answer.headers.get("Content-Length", 0))) // _MIB
        name = url.rpartition("/")[2]
        with (
            part.open("ab" if start else "wb") as file,
            console.progress_bar(total=total, description=f"fetching {name}", unit="MiB") as bar,
        ):
            for block in answer.iter_content(_BLOCK):
                file.write(block)
                bar.update(file.tell() // _MIB - bar.n)

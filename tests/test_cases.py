"""Small files of the kinds that people have, in tests/cases, and what is right of each.

All are synthesised: tones of 220 and 660 Hz by turns, a second each. Seconds are those of ffmpeg's
decode.
"""

from pathlib import Path

import numpy as np
import pytest

from mgc_jax.data.audio import load_audio, read_clips
from mgc_jax.data.audio_folder import read_folder
from mgc_jax.errors import InputError

CASES = Path(__file__).parent / "cases"
RATE = 16000
SECONDS = {
    "piped.flac": 11.0,  # no length in the header
    "chained.ogg": 22.0,
    "silence_first_lame_pipe.mp3": 11.59,  # no frame count
    "loud_first_lame_pipe.mp3": 22.1,  # no frame count
    "joined_2x11s.mp3": 22.1,  # the first header counts half
    "ogg_flac.oga": 11.0,
    "fma_length_29.977s.mp3": 29.977,
    "music_then_silence.flac": 72.0,
    "silence.flac": 12.0,
}
CLIPS = {  # where they start, in s
    "piped.flac": [0],
    "chained.ogg": [0, 10],
    "silence_first_lame_pipe.mp3": [0],
    "loud_first_lame_pipe.mp3": [0, 10],
    "joined_2x11s.mp3": [0, 10],
    "ogg_flac.oga": [0],
    "fma_length_29.977s.mp3": [0, 10, 19.977],
    "music_then_silence.flac": [0, 10],  # 12 s of music
}
REFUSED = {
    "silence.flac": "no signal: nothing but silence in it",
    "int16_range.wav": "floats in int16's range; divide by 32768",
    "huge.wav": "samples up to 3.56e[+]19: no sound has these",
}


def clips_of(name):
    return list(read_clips(CASES / name, RATE, 10 * RATE))


@pytest.mark.parametrize("name", SECONDS)
def test_lengths(name):
    assert len(load_audio(CASES / name, RATE)) / RATE == pytest.approx(SECONDS[name], abs=0.05)


@pytest.mark.parametrize("name", CLIPS)
def test_clips(name):
    clips = clips_of(name)
    assert [clip.start / RATE for clip in clips] == pytest.approx(CLIPS[name], abs=0.001)
    for clip in clips:
        spectrum = np.abs(np.fft.rfft(clip.samples)) ** 2
        frequencies = np.arange(len(spectrum)) / 10
        tones = (np.abs(frequencies - 220) < 3) | (np.abs(frequencies - 660) < 3)
        assert spectrum[tones].sum() > 0.4 * spectrum.sum()  # beside noise


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(InputError, match=REFUSED[name]):
        clips_of(name)


@pytest.mark.parametrize("name", ["splits_bom.csv", "splits_Train.csv", "splits_semicolon.csv"])
def test_tables_as_spreadsheets_save_them(tmp_path, name):
    """All three say the same, and are understood."""
    for line in (CASES / name).read_text(encoding="utf-8-sig").splitlines()[1:]:
        path = tmp_path / line.replace(";", ",").partition(",")[0]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    listing = read_folder(tmp_path, CASES / name)
    assert not listing.skipped
    assert {track.split for track in listing.tracks} == {"train", "validation", "test"}


def test_no_case_is_left_out():
    tables = {path.name for path in CASES.glob("*.csv")}
    assert {path.name for path in CASES.iterdir()} == {*SECONDS, *REFUSED, *tables}

"""A small music synthesiser with the eight genres of FMA small.

Each genre has tendencies (tempo, drums, harmony, instruments, mix) from which its tracks draw;
genres share timbres, beats and scales, so no single cue gives one away.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter, oaconvolve

SAMPLE_RATE = 44_100
_CENT = math.log(2) / 1200  # as a share of the frequency

_Rng = np.random.Generator
_Event = tuple[int, tuple, float]  # first sample, the sound's key, gain

# fmt: off
# What a style has. Words to choose from, the likeliest first: mode:scale degrees of four
# bars, beat:kit, three times voice:pattern, noise. Then ranges: beats a minute, delay of every
# second step (in steps), how far a kick ducks the harmony, share of reverb, low-pass corner (kHz),
# saturation, dB RMS.
_TENDENCIES = ("chords", "drums", "bass", "harmony", "lead", "noise",
               "tempo", "swing", "pump", "wet", "tone", "drive", "level")
_STYLES = {
    "Electronic": ("minor:0000 minor:0536 dorian:0033", "floor:909 floor:909 floor:808 breaks:909",
        "saws:off sub:eighths saws:synco", "saws:stab saws:arp square:arp pad:pad",
        "square:motif saws:motif square:dense none", "none none bursts",
        (120, 140), (0, 0.1), (0.6, 0.9), (0.1, 0.3), (10, 17), (1.5, 3), (-17, -12)),
    "Experimental": ("whole:0000 chroma:0246 hijaz:0101", "chaos:acoustic chaos:909 none",
        "pad:long sub:long", "pad:pad organ:pad saws:pad bell:arp",
        "bell:sparse reed:sparse fuzz:sparse none", "bursts",
        (50, 150), (0, 0.3), (0, 0.3), (0.4, 0.8), (4, 16), (1, 4), (-26, -14)),
    "Folk": ("major:0304 major:0534 dorian:0403 mixo:0304", "none none none train:acoustic",
        "nylon:root nylon:walk none", "pluck:pick pluck:strum",
        "sung:motif sung:motif fiddle:motif flute:motif", "none",
        (80, 130), (0, 0.15), (0, 0.1), (0.02, 0.1), (7, 12), (1, 1.3), (-25, -18)),
    "Hip-Hop": ("minor:0000 minor:0303 dorian:0054", "boom:808 boom:acoustic trap:808",
        "sub:synco sub:root sub:long", "keys:stab piano:arp keys:pad bell:arp",
        "sung:rap sung:rap sung:rap none", "vinyl vinyl none",
        (74, 98), (0.1, 0.35), (0, 0.4), (0.02, 0.1), (5, 9), (1.5, 3), (-17, -12)),
    "Instrumental": ("major:0453 minor:0536 dorian:0351", "none none soft:acoustic",
        "pad:long pad:long nylon:root", "piano:pick piano:arp piano:arp nylon:pick",
        "fiddle:sparse piano:motif bell:sparse none", "none",
        (60, 115), (0, 0.1), (0, 0.1), (0.25, 0.5), (3, 7), (1, 1.5), (-25, -17)),
    "International": ("hijaz:0000 hijaz:0101 penta:0060",
        "hand:acoustic six:acoustic hand:acoustic", "nylon:synco nylon:root none",
        "pluck:arp nylon:strum organ:pad", "reed:motif reed:dense reed:motif flute:dense", "none",
        (84, 135), (0, 0.25), (0, 0.1), (0.1, 0.3), (6, 14), (1, 1.8), (-21, -15)),
    "Pop": ("major:0453 major:5304 minor:0534", "pop:909 pop:acoustic pop:acoustic rock:acoustic",
        "nylon:eighths nylon:eighths saws:eighths", "piano:stab piano:strum pad:pad pluck:strum",
        "sung:motif sung:dense sung:dense", "none",
        (96, 126), (0, 0.12), (0, 0.3), (0.1, 0.25), (13, 19), (1, 2), (-16, -12)),
    "Rock": ("mixo:0340 minor:0063 penta:0643", "rock:acoustic drive:acoustic drive:acoustic",
        "nylon:eighths saws:eighths nylon:root", "power:chug power:strum power:pad",
        "sung:motif fuzz:motif fuzz:dense", "none",
        (105, 165), (0, 0.1), (0, 0.1), (0.04, 0.2), (8, 14), (2, 4), (-16, -11)),
}
GENRES: tuple[str, ...] = tuple(_STYLES)
_MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10), "penta": (0, 2, 4, 7, 9),
    "dorian": (0, 2, 3, 5, 7, 9, 10), "mixo": (0, 2, 4, 5, 7, 9, 10), "whole": (0, 2, 4, 6, 8, 10),
    "hijaz": (0, 1, 4, 5, 7, 8, 10), "chroma": tuple(range(12)),
}
# Rows of sixteenths, repeated. x: a stroke, o: a soft one that may be left out.
_BEATS = {
    "none": {},
    "floor": {"kick": "x...", "clap": "....x...", "hat": "o.x.o.x.o.x.o.xo"},
    "breaks": {"kick": "x.........x..o..", "snare": "....x..o.o..x..o", "hat": "x."},
    "rock": {"kick": "x.....o.x.x.....", "snare": "....x.......x..o", "hat": "x."},
    "drive": {"kick": "x.x...x.x.x...o.", "snare": "....x...", "open": "x..."},
    "pop": {"kick": "x.....x.x.....o.", "snare": "....x...", "hat": "x.", "shaker": "oxoo"},
    "boom": {"kick": "x..o......x..o..", "snare": "....x.......x..o", "hat": "x.x.x.xo"},
    "trap": {"kick": "x......x..o.....", "clap": "........x.......", "hat": "x.xxx.x.xxx.x.xx"},
    "train": {"kick": "x.......", "shaker": "x.oo"},
    "soft": {"kick": "x.........o.....", "hat": "x...", "snare": "............o..."},
    "hand": {"low": "x.....x.x.....o.", "high": "..x.xo....x.xoxo", "shaker": "x."},
    "six": {"low": "x.....x..o..", "high": "..xox...x.xo", "shaker": "x.."},
}
# One bar, or a part of it. c: the whole chord, a digit: that chord tone, -: the last one rings on.
_PATTERNS = {
    "pad": "c---------------", "stab": "..c...c-..c..c..", "chug": "c-", "off": "..0-",
    "strum": "c---c-c---c-c-c-", "arp": "0-1-2-3-2-1-0-2-", "pick": "0-2-1-3-0-2-1-2-",
    "long": "0---------------", "root": "0-------0-----0-", "synco": "0--0..0---0-..0-",
    "walk": "0---1---2---1---", "eighths": "0-",
}
# A melody: chance of a note on a strong and on a weak step, range in scale steps.
_MELODIES = {"motif": (0.7, 0.25, 7), "dense": (0.95, 0.5, 8), "sparse": (0.3, 0.04, 8),
             "rap": (0.95, 0.75, 2)}
# Partials, their rolloff (fm: the modulator's ratio), attack and decay in s, detuning and vibrato
# in cents, damping (a string's loss of high partials), distortion.
_VOICES = {
    "saws": ("all", 1.0, 0.006, 1.5, 11, 0, 0, 0), "square": ("odd", 1.0, 0.004, 0.6, 3, 0, 0, 0),
    "pad": ("all", 1.4, 0.35, 9.0, 8, 0, 0, 0), "organ": ("organ", 0.4, 0.02, 9.0, 0, 5, 0, 0),
    "reed": ("odd", 0.7, 0.03, 4.0, 0, 14, 0, 0), "flute": ("all", 2.4, 0.06, 4.0, 0, 9, 0, 0),
    "fiddle": ("all", 0.9, 0.09, 5.0, 0, 17, 0, 0), "sung": ("sung", 0.8, 0.04, 4.0, 4, 24, 0, 0),
    "pluck": ("string", 0.5, 0.001, 0.9, 0, 0, 1, 0), "sub": ("all", 3.5, 0.006, 0.8, 0, 0, 0, 0),
    "nylon": ("string", 1.2, 0.002, 0.7, 0, 0, 2, 0), "bell": ("fm", 3.5, 0.001, 1.2, 0, 0, 0, 0),
    "piano": ("all", 1.3, 0.002, 1.1, 1.5, 0, 1.5, 0), "keys": ("fm", 1.0, 0.003, 1.0, 0, 0, 0, 0),
    "power": ("string", 0.7, 0.002, 3, 0, 0, 0.3, 9), "fuzz": ("string", 1, 0.01, 3, 0, 9, 0.3, 14),
}
# Tone: start and end in Hz, decay in s, gain. Noise: decay in s, gain, share of treble.
_DRUMS = {
    "kick acoustic": (160, 60, 0.11, 1, 0.012, 0.4, 0.3), "low": (130, 85, 0.2, 1, 0.01, 0.3, 0.1),
    "kick 909": (260, 50, 0.2, 1.2, 0.006, 0.3, 0.6), "high": (420, 360, 0.07, 0.7, 0.03, 0.6, 0.4),
    "kick 808": (130, 43, 0.45, 1.2, 0.004, 0.1, 0.2), "hat": (9, 9, 0.01, 0, 0.03, 0.5, 1),
    "snare": (240, 185, 0.09, 0.6, 0.11, 0.6, 0.6), "clap": (9, 9, 0.01, 0, 0.1, 1, 0.5),
    "open": (9, 9, 0.01, 0, 0.22, 0.45, 1), "shaker": (9, 9, 0.01, 0, 0.045, 0.3, 0.9),
}
_LEVELS = {"drums": -1, "bass": -2, "harmony": -4, "lead": -3, "noise": -12}  # dB
_CHANCES = {"drums": 0.95, "bass": 0.95, "harmony": 0.95, "lead": 0.85}  # to play a section
# fmt: on


@dataclass(frozen=True)
class _Song:
    """What one track has drawn."""

    drawn: dict  # a word or a number for each of _TENDENCIES
    step: float  # samples in a sixteenth
    bar: int  # steps in a bar
    start: float  # the first step's sample; negative, since an excerpt starts mid-piece
    playing: dict[str, np.ndarray]  # part: [sections of four bars] bool
    root: int  # MIDI note

    def strokes(self, part: str, row: str, rng: _Rng) -> Iterator[tuple[int, int, str, int]]:
        """The marks of a repeated row: first sample, step, mark, steps it is held for."""
        for step in range(len(self.playing[part]) * 4 * self.bar):
            mark = row[step % len(row)]
            rest = row[step % len(row) + 1 :]
            rested = mark in ".-" or (mark == "o" and rng.random() < 0.4)
            if rested or not self.playing[part][step // (4 * self.bar)]:
                continue
            late = rng.normal(0, 0.02) + self.drawn["swing"] * (step % 2)
            held = 1 + len(rest) - len(rest.lstrip("-"))
            yield int(self.start + (step + late) * self.step), step, mark, held


def synthesize_track(genre: str, seed: int, seconds: float = 30.0) -> np.ndarray:
    """Make one track.

    Args:
        genre: one of `GENRES`.
        seed: a non-negative integer; (genre, seed, seconds) determines the samples.
        seconds: length of the excerpt.

    Returns:
        [samples, 2] float32 in [-1, 1], at 44.1 kHz.

    Raises:
        ValueError: if the genre is unknown.
    """
    if genre not in GENRES:
        raise ValueError(f"unknown genre {genre!r}: expected one of {', '.join(GENRES)}")
    rng = np.random.default_rng([seed, GENRES.index(genre)])
    length = round(seconds * SAMPLE_RATE)
    song = _draw_song(genre, length, rng)
    strokes = list(_drum_events(song, rng))
    buses = {"drums": _play(strokes, functools.cache(lambda name: _drum(name, rng)), length)}
    for part in ("bass", "harmony", "lead"):
        buses[part] = _pitched_bus(song, part, length, rng)
    buses["noise"] = _noise(song.drawn["noise"], length, rng)
    kicks = [event for event in strokes if event[1][0].startswith("kick")]
    duck = _play(kicks, lambda _: np.exp(-_seconds(0.5) / 0.13), length)
    buses["harmony"] *= 1 - song.drawn["pump"] * np.minimum(duck, 1)
    return _mix(song.drawn, buses, rng)


def _draw_song(genre: str, length: int, rng: _Rng) -> _Song:
    """Draws a track of so many samples from its genre's tendencies."""
    drawn = {}
    for index, name in enumerate(_TENDENCIES):
        choice = _STYLES[genre][index]
        if isinstance(choice, str):
            words = choice.split()
            drawn[name] = words[min(int(rng.geometric(0.65)) - 1, len(words) - 1)]
        else:
            drawn[name] = rng.uniform(*choice, 3).mean()  # most often near the middle
    step = SAMPLE_RATE * 15 / drawn["tempo"]
    bar = 12 if "six" in drawn["drums"] else 16
    start = -rng.uniform(0, 4 * bar) * step
    sections = math.ceil((length - start) / (4 * bar * step))
    playing = {part: rng.random(sections) < chance for part, chance in _CHANCES.items()}
    silent = "none" in (drawn["lead"], drawn["drums"])
    playing["harmony"] |= silent | ~(playing["lead"] | playing["drums"])  # no section is empty
    return _Song(drawn, step, bar, start, playing, int(rng.integers(41, 53)))


def _drum_events(song: _Song, rng: _Rng) -> Iterator[_Event]:
    beat, _, kit = song.drawn["drums"].partition(":")
    if beat == "chaos":  # rows of odd lengths, so the rhythm hardly comes back
        names = ("kick", "snare", "clap", "hat", "open", "low", "high")
        rows = {str(rng.choice(names)): "".join(rng.choice([*"x......."], n)) for n in (37, 53, 61)}
    else:
        rows = _BEATS[beat]
    for drum, row in rows.items():
        for start, _, mark, _ in song.strokes("drums", row, rng):
            gain = rng.uniform(0.75, 1.0) * (1.0 if mark == "x" else 0.45)
            yield start, (f"kick {kit}" if drum == "kick" else drum,), gain


def _pitched_bus(song: _Song, part: str, length: int, rng: _Rng) -> np.ndarray:
    """A part with pitches, all its strokes added up: `[length] float32`."""
    name, _, pattern = song.drawn[part].partition(":")
    if not pattern:
        return np.zeros(length, np.float32)
    if part == "lead":
        row = _melody(4 * song.bar, *_MELODIES[pattern], rng)
    else:
        row = _PATTERNS[pattern][: song.bar]
    low = name == "power" or pattern == "rap"
    shift = {"bass": -12, "harmony": 12, "lead": 24}[part] - 12 * low
    if name == "power":  # the chord is in its sound, since distortion acts on the sum
        row = row.replace("c", "0")
    shade = rng.uniform(-0.1, 0.15)  # no two tracks have quite the same instrument
    span = song.step / SAMPLE_RATE * (0.5 if pattern in ("stab", "off", "rap") else 1.0)
    sound = functools.cache(lambda note, held: _note(name, shade, note, min(held * span, 3.5), rng))
    bus = _play(_note_events(song, part, row, shift, rng), sound, length)
    dark = _lowpass(bus, 0.94)
    turns = rng.random() + np.linspace(0, rng.uniform(2, 6), length, dtype=np.float32)
    opening = np.float32(rng.uniform(0, 0.2)) * (1 + np.sin(2 * np.pi * turns))
    return bus + (dark - bus) * opening  # a low-pass filter that opens and closes slowly


def _melody(steps: int, strong: float, weak: float, reach: int, rng: _Rng) -> str:
    """A row whose letters are scale degrees (H: the root)."""
    degree, row = 0, ""
    for step in range(steps):
        if rng.random() < (weak if step % 4 else strong):
            degree = min(max(degree + int(rng.integers(-2, 3)), -reach // 2), reach)
            row += chr(ord("H") + degree)
        else:
            row += "." if rng.random() < 0.15 else "-"
    return row


def _note_events(song: _Song, part: str, row: str, shift: int, rng: _Rng) -> Iterator[_Event]:
    mode, _, chords = song.drawn["chords"].partition(":")
    scale = _MODES[mode]
    for start, step, mark, held in song.strokes(part, row, rng):
        chord = int(chords[step // song.bar % 4])
        degrees = [chord + 2 * tone for tone in range(3)]
        if mark != "c":
            degrees = [chord + 2 * int(mark) if mark.isdigit() else ord(mark) - ord("H")]
        for order, degree in enumerate(degrees):  # strummed
            note = song.root + shift + 12 * (degree // len(scale)) + scale[degree % len(scale)]
            yield start + int(0.12 * order * song.step), (note, held), rng.uniform(0.7, 1.0)


def _play(events: Iterable[_Event], sound: Callable[..., np.ndarray], length: int) -> np.ndarray:
    """Add up sounds at their places into a bus of [length] float32."""
    bus = np.zeros(length, np.float32)
    for start, key, gain in events:
        samples = sound(*key)[max(-start, 0) :]
        start = max(start, 0)
        samples = samples[: max(length - start, 0)]
        bus[start : start + len(samples)] += np.float32(gain) * samples
    return bus


def _lowpass(signal: np.ndarray, pole: float) -> np.ndarray:
    return lfilter(np.float32([1 - pole]), np.float32([1, -pole]), signal)  # all float32: fast


def _seconds(duration: float) -> np.ndarray:
    return np.arange(int(duration * SAMPLE_RATE), dtype=np.float32) / np.float32(SAMPLE_RATE)


def _note(name: str, shade: float, note: int, seconds: float, rng: _Rng) -> np.ndarray:
    """A note as [samples] float32; `shade` makes an instrument duller and longer."""
    series, rolloff, attack, decay, detune, vibrato, damping, drive = _VOICES[name]
    release = 0.06 + min(attack, 0.3)
    decay = decay * 2**shade
    time = _seconds(seconds + release)
    hz = 440 * 2 ** ((note - 69) / 12)
    if series == "fm":
        phase = 2 * np.pi * hz * time
        body = np.sin(phase + (2 - shade) * np.exp(-3 * time / decay) * np.sin(rolloff * phase))
    else:
        sizes = (1, 1.498, 2) if name == "power" else (1,)
        shape = (series, rolloff + shade, detune * _CENT, vibrato * _CENT / 32, damping)
        body = sum(_additive(hz * size, time, *shape, rng) for size in sizes)
    if drive:  # the filter stands for the amplifier's loudspeaker
        body = _lowpass(np.tanh(drive * body), 0.7)
    fall = np.minimum(1, (time[-1] - time) / release)
    return body * np.minimum(1, time / attack) * fall * np.exp(-time / decay)


def _additive(hz, time, series, rolloff, detune, vibrato, damping, rng: _Rng) -> np.ndarray:
    """A harmonic tone read from a table with one row a period, or one row if it does not change.

    With damping this is Karplus-Strong's string solved per period: its two-point average scales
    partial k by cos(pi k hz / rate) on each round trip.
    """
    partials = np.arange(1, max(2, int(0.45 * SAMPLE_RATE / hz)))
    size = 1 << int(4 * SAMPLE_RATE / hz).bit_length()
    rows = int(hz * 1.02 * len(time) / SAMPLE_RATE) + 2 if damping else 1
    loss = np.cos(np.pi * partials * hz / SAMPLE_RATE) ** damping
    spectra = np.zeros((rows, size // 2 + 1), np.complex64)
    spectra[:, partials] = _spectrum(series, rolloff, partials, hz, rng)
    spectra[:, partials] *= loss ** np.arange(rows)[:, None]
    table = np.fft.irfft(spectra, size).astype(np.float32) * (size / 2)
    out = np.zeros(len(time), np.float32)
    for copy in (-1, 0, 1) if detune else (0,):
        clock = time.astype(np.float64) * (1 + copy * detune) + vibrato * np.sin(32 * time)
        phase = hz * clock + rng.random()
        period = phase.astype(np.int32)
        out += table[np.minimum(period, rows - 1), ((phase - period) * size).astype(np.int32)]
    return out


def _spectrum(series: str, rolloff: float, partials, hz: float, rng: _Rng) -> np.ndarray:
    shape = -1j * partials**-rolloff
    if series == "odd":
        shape *= partials % 2
    elif series == "organ":
        shape *= np.isin(partials, (1, 2, 3, 4, 6, 8))
    elif series == "sung":
        for formant in rng.choice(((700, 1200), (400, 2100), (500, 900), (300, 2400))):
            shape *= 0.25 + np.exp(-(((partials * hz - formant) / 250) ** 2))
    elif series == "string":  # a burst of noise, plucked some way along the string
        noise = rng.standard_normal((2, len(partials)))
        shape *= (noise[0] + 1j * noise[1]) * np.sin(np.pi * partials * 0.18)
    return shape


def _drum(name: str, rng: _Rng) -> np.ndarray:
    row = _DRUMS[name] * rng.uniform(0.8, 1.25, 7)
    high, low, ring, tone, hiss, noise, treble = np.minimum(row, (*[999] * 6, 1))
    time = _seconds(5 * max(ring, hiss))
    pitch = low + (high - low) * np.exp(-time / 0.03)
    body = tone * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE) * np.exp(-time / ring)
    white = rng.standard_normal(len(time), np.float32)
    hits = treble * np.diff(white, prepend=0) + (1 - treble) * _lowpass(white, 0.9)
    if name == "clap":  # several hands
        hits *= np.where(time < 0.035, time % 0.011 < 0.005, 1.0)
    fade = np.minimum(1, (time[-1] - time) / 0.01)
    return ((body + noise * np.exp(-time / hiss) * hits) * fade).astype(np.float32)


def _noise(kind: str, length: int, rng: _Rng) -> np.ndarray:
    if kind == "none":
        return np.zeros(length, np.float32)
    noise = rng.standard_normal(length, np.float32)
    if kind == "vinyl":
        return noise * (0.02 + (rng.random(length, np.float32) < 3e-4))
    knots = int(rng.integers(10, 150))
    pole = rng.uniform(0.7, 0.97)
    level = np.interp(np.linspace(0, knots - 1, length), range(knots), rng.random(knots) ** 5)
    return level.astype(np.float32) * _lowpass(noise, pole)


def _rms(signal: np.ndarray) -> float:
    return max(float(np.sqrt(np.mean(signal**2))), 1e-9)


def _mix(drawn: dict, buses: dict[str, np.ndarray], rng: _Rng) -> np.ndarray:
    """Balance, place, reverberate and master the buses: [length, 2] float32."""
    length = len(buses["drums"])
    stereo = np.zeros((2, length), np.float32)
    send = np.zeros(length, np.float32)
    for part, bus in buses.items():
        heard = bus[np.abs(bus) > 1e-3]
        if not len(heard):
            continue
        gain = 10 ** ((_LEVELS[part] + rng.normal(0, 1)) / 20) / _rms(heard)
        pan = rng.uniform(-0.5, 0.5) if part in ("harmony", "lead") else rng.uniform(-0.1, 0.1)
        for side, place in enumerate((1 - pan, 1 + pan)):
            stereo[side] += np.float32(gain * place) * bus
        send += np.float32(gain * (0.1 if part in ("bass", "noise") else 1.0)) * bus
    stereo += np.float32(drawn["wet"]) * _reverb(send, rng)
    pole = math.exp(-2000 * math.pi * drawn["tone"] / SAMPLE_RATE)
    stereo = _lowpass(stereo, pole)
    stereo = np.tanh(stereo * np.float32(0.2 * drawn["drive"] / _rms(stereo)))
    stereo *= np.float32(10 ** (drawn["level"] / 20) / _rms(stereo))
    over = np.maximum(np.abs(stereo) - 0.5, 0)  # a limiter: no peak above 0.95
    limited = np.clip(stereo, -0.5, 0.5) + np.sign(stereo) * 0.45 * np.tanh(over / 0.45)
    return limited.T.astype(np.float32)


def _reverb(send: np.ndarray, rng: _Rng) -> np.ndarray:
    """A stereo room of exponentially decaying noise, at half the rate for speed."""
    half = np.pad(send, (0, len(send) % 2)).reshape(-1, 2).mean(1)
    tail = _seconds(rng.uniform(0.4, 1.6))[::2]
    room = rng.standard_normal((2, len(tail)), np.float32) * np.exp(-5 * tail / tail[-1])
    room = _lowpass(room, 0.6)
    room /= np.sqrt(np.sum(room**2, axis=1, keepdims=True))
    wet = oaconvolve(half[None], room, axes=1)[:, : len(half)]
    return np.repeat(wet, 2, axis=1)[:, : len(send)]

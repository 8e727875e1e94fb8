"""Every kind of audio file that ffmpeg, sox and lame make here, decoded by us and by ffmpeg.

    python benchmarks/containers.py

Prints JSON: a row for each container, codec, rate and number of channels, with the seconds that
ours is longer than ffmpeg's decode, the largest difference of samples where both are, and whether
these are within the row's tolerance (0.1 s; of joints, where a packet may be lost, the length
alone counts); and how many are. Decoders of lossless codecs agree to rounding;
those of lossy ones do where libsndfile and FFmpeg have the same (MP3 by mpg123 and by FFmpeg's own
differ a little, and at the edges more).

Needs ffmpeg, sox and lame on the path.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from absl import flags

from mgc_jax import cli
from mgc_jax.data.audio import load_audio
from mgc_jax.demo.synth import GENRES, SAMPLE_RATE, synthesize_track
from mgc_jax.errors import InputError

_SECONDS = flags.DEFINE_integer("seconds", 7, "Length of the music in every file, in s.", 2)

# Ending, arguments of ffmpeg, rates, channels, largest difference of samples.
_BY_FFMPEG = (
    ("wav", "-c:a pcm_s16le", (8000, 44100, 96000), (1, 2, 6), 1e-6),
    ("wav", "-c:a pcm_f32le", (44100,), (2,), 1e-6),
    ("flac", "-c:a flac", (16000, 44100, 96000), (1, 2), 1e-6),
    ("aiff", "-c:a pcm_s24be", (44100,), (2,), 1e-6),
    ("au", "-c:a pcm_s16be", (22050,), (1,), 1e-6),
    ("caf", "-c:a pcm_s16le", (44100,), (2,), 1e-6),
    ("w64", "-c:a pcm_s16le", (48000,), (2,), 1e-6),
    ("rf64.wav", "-c:a pcm_s16le -rf64 always", (48000,), (2,), 1e-6),
    ("mp3", "-c:a libmp3lame -b:a 128k", (16000, 44100, 48000), (1, 2), 0.02),
    ("mp3", "-c:a libmp3lame -q:a 2", (22050, 44100), (2,), 0.02),
    ("ogg", "-c:a libvorbis", (22050, 44100), (1, 2), 1e-3),
    ("opus", "-c:a libopus", (48000,), (1, 2), 0.02),
    ("oga", "-c:a flac", (44100,), (2,), 1e-6),
    ("m4a", "-c:a aac", (22050, 44100, 48000), (1, 2), 1e-6),
    ("m4a", "-c:a alac", (44100,), (2,), 1e-6),
    ("mp4", "-c:a aac -movflags frag_keyframe+empty_moov", (44100,), (2,), 1e-6),
    ("aac", "-c:a aac", (44100,), (2,), 1e-6),
    ("wma", "-c:a wmav2", (44100,), (2,), 1e-6),
    ("wv", "-c:a wavpack", (44100,), (2,), 1e-6),
    ("tta", "-c:a tta", (44100,), (2,), 1e-6),
    ("mka", "-c:a libvorbis", (44100,), (2,), 1e-6),
    ("webm", "-c:a libopus", (48000,), (2,), 1e-6),
)
# Files whose length nobody tells: what is piped into a file, joined, or chained.
_BY_SHELL = (
    ("lame_vbr_pipe.mp3", "lame --quiet -V2 {wav} - | cat > {out}", 0.02),
    ("ffmpeg_pipe.mp3", "ffmpeg -v error -i {wav} -f mp3 - | cat > {out}", 0.02),
    ("cbr_without_info.mp3", "lame --quiet -t -b 128 {wav} - | cat > {out}", 0.02),
    ("ffmpeg_pipe.flac", "ffmpeg -v error -i {wav} -f flac - | cat > {out}", 1e-6),
    (
        "joined.mp3",
        "lame --quiet -V2 {wav} {tmp}/a.mp3 && cat {tmp}/a.mp3 {tmp}/a.mp3 > {out}",
        0.02,
    ),
    (
        "chained.ogg",
        "ffmpeg -v error -i {wav} -c:a libvorbis {tmp}/a.ogg"
        " && cat {tmp}/a.ogg {tmp}/a.ogg > {out}",
        float("inf"),
    ),
    (
        "chained.opus",
        "ffmpeg -v error -i {wav} -c:a libopus {tmp}/a.opus"
        " && cat {tmp}/a.opus {tmp}/a.opus > {out}",
        float("inf"),
    ),
    (
        "joined_of_other_kinds.mp3",
        "lame --quiet -t -V2 {wav} {tmp}/a.mp3"
        " && lame --quiet -t -m m --resample 22.05 -b 64 {wav} {tmp}/b.mp3"
        " && cat {tmp}/a.mp3 {tmp}/b.mp3 > {out}",
        float("inf"),
    ),
    (
        "chained_of_other_kinds.ogg",
        "ffmpeg -v error -y -i {wav} -c:a libvorbis {tmp}/a.ogg"
        " && ffmpeg -v error -y -i {wav} -ar 22050 -ac 1 -c:a libvorbis {tmp}/b.ogg"
        " && cat {tmp}/a.ogg {tmp}/b.ogg > {out}",
        float("inf"),
    ),
    (
        "chained_of_other_kinds.opus",
        "ffmpeg -v error -y -i {wav} -c:a libopus {tmp}/a.opus"
        " && ffmpeg -v error -y -i {wav} -ac 1 -c:a libopus {tmp}/b.opus"
        " && cat {tmp}/b.opus {tmp}/a.opus > {out}",
        float("inf"),
    ),
    (
        "recorded_stream.mp3",
        "lame --quiet -t -b 128 {wav} - | tail -c +1000 | head -c -100 > {out}",
        float("inf"),  # its first frames need bits of those before, which are gone
    ),
    (
        "recorded_stream.aac",
        "ffmpeg -v error -i {wav} -c:a aac -f adts - | tail -c +1000 | head -c -100 > {out}",
        1e-6,
    ),
    (
        "padded.mp3",
        "lame --quiet -t -V2 {wav} {tmp}/a.mp3"
        " && (printf 'ID3\\3\\0\\0\\0\\0\\0\\12'; head -c 9000 /dev/zero; cat {tmp}/a.mp3) > {out}",
        0.02,
    ),
    ("sox.mp2", "ffmpeg -v error -i {wav} -c:a mp2 {out}", 0.02),
    ("sox.snd", "sox {wav} -t au {out}", 1e-6),
)
_LENGTH = 0.1  # s


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    if missing := [tool for tool in ("ffmpeg", "sox", "lame") if not shutil.which(tool)]:
        raise InputError(f"{missing[0]} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        rows = [_compare(*case) for case in _make_files(Path(folder))]
    result = {"rows": rows, "files": len(rows), "within": sum(row["within"] for row in rows)}
    json.dump(result, sys.stdout, indent=1)


def _make_files(folder: Path):
    """Makes every file; yields it with its name and tolerance."""
    music = synthesize_track(GENRES[0], seed=0, seconds=float(_SECONDS.value)) * 0.7
    source = folder / "source.f32"
    np.ascontiguousarray(music, np.float32).tofile(source)
    read = ["-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", str(music.shape[1]), "-i", str(source)]
    for number, (ending, arguments, rates, layouts, tolerance) in enumerate(_BY_FFMPEG):
        for rate in rates:
            for channels in layouts:
                path = folder / f"{number}_{rate}_{channels}.{ending}"
                shape = ["-ar", str(rate), "-ac", str(channels)]
                command = ["ffmpeg", "-v", "error", *read, *shape, *arguments.split(), str(path)]
                subprocess.run(command, check=True)
                yield f"{ending} {arguments} {rate} Hz x {channels}", path, rate, tolerance
    wav = folder / "music.wav"
    subprocess.run(["ffmpeg", "-v", "error", *read, "-ar", "44100", str(wav)], check=True)
    for name, command, tolerance in _BY_SHELL:
        path = folder / name
        places = {"wav": wav, "out": path, "tmp": folder}
        subprocess.run(["bash", "-ec", command.format(**places)], check=True)
        yield name, path, 48000 if "opus" in name else 44100, tolerance


def _compare(name: str, path: Path, rate: int, tolerance: float) -> dict:
    """Ours beside ffmpeg's decode of a file, both at the file's rate, the mean of the channels."""
    probe = ["ffprobe", "-v", "error", "-show_entries", "stream=channels", "-of", "csv=p=0"]
    channels = int(subprocess.check_output([*probe, str(path)]).split()[0].strip(b","))
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "f32le", "-ar", str(rate), "-"]
    theirs = np.frombuffer(subprocess.check_output(command), np.float32)
    theirs = theirs.reshape(-1, channels).mean(axis=1)
    try:
        ours = load_audio(path, rate)
    except InputError as error:
        return {"file": name, "error": str(error), "within": False}
    size = min(len(ours), len(theirs))
    seconds = (len(ours) - len(theirs)) / rate
    largest = float(np.abs(ours[:size] - theirs[:size]).max())
    return {
        "file": name,
        "seconds_longer": round(seconds, 4),
        "largest_difference": float(f"{largest:.2g}"),
        "within": bool(abs(seconds) <= _LENGTH and largest <= tolerance),
    }


if __name__ == "__main__":
    cli.run_main(main)

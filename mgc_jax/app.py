"""A page that shows the genres of audio files dropped on it, or recorded.

    python -m mgc_jax.app --pretrained=msd_musicnn                              # tags, untrained
    python -m mgc_jax.app --workdir=runs/densenet
    python -m mgc_jax.app --workdir=runs/densenet --host=0.0.0.0 --port=8000    # for others too

Needs the extra `app` (pip install -e ".[app]"); the page loads nothing from other hosts. It takes
files of up to 200 MB, and deletes them ten minutes later; --minutes bounds how long they may be.
"""

import contextvars
import csv
import html
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from absl import flags

from mgc_jax import cli, console, signals
from mgc_jax.errors import InputError
from mgc_jax.files import cell

if TYPE_CHECKING:
    import gradio

    from mgc_jax.predictor import Prediction, Predictor

_VISITORS = 4  # served at a time; the others wait
_LARGEST = "200mb"  # of a file
_MOST_FILES = 50  # that are answered at once
# How often files are looked at, and how old they become; also how long answers are kept. In s.
_CLEARED_EVERY, _KEPT = 60, 600

_TOLD_EVERY = 60.0  # s of sound, after which it is said how far a file is

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_network("predicts")
    cli.define_unknown()
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 is all.")
    flags.DEFINE_integer("port", 7860, "Port to listen at.", lower_bound=1, upper_bound=65535)
    flags.DEFINE_float(
        "minutes",
        60.0,
        "Longest file that is answered, in minutes: a few kB may hold hours.",
        lower_bound=0.1,
    )


def main(argv: list[str]) -> None:
    """Serves the page until it is interrupted."""
    cli.reject_arguments(argv)
    name = cli.named_network()
    # Nobody is told that this runs, nor asked for a newer version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError:
        raise InputError("gradio is not installed: pip install -e '.[app]'") from None
    import mgc_jax

    title = os.path.basename(os.path.abspath(name))
    page = build_page(mgc_jax.load(name, unknown=FLAGS.unknown), title, 60 * FLAGS.minutes)
    # The default theme's fonts come from elsewhere.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        _, url, _ = page.launch(
            server_name=FLAGS.host,
            server_port=FLAGS.port,
            theme=theme,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=_LARGEST,
        )
    except OSError as error:
        raise InputError(f"cannot listen at --port={FLAGS.port}: {error}") from None
    console.log.info("open %s in a browser; Ctrl-C ends", url)
    while not signals.stop_requested(seconds=60.0):
        pass
    signals.check()


def build_page(predictor: "Predictor", title: str, longest: float = 3600.0) -> "gradio.Blocks":
    """The page; several visitors are served at once.

    Args:
        predictor: that answers.
        title: of the network, for people.
        longest: file that is answered, in s.
    """
    import gradio as gr

    from mgc_jax.data.audio import EXTENSIONS

    # One thread for all visitors, as Matplotlib opens its fonts anew for each.
    drawing = ThreadPoolExecutor(1)

    def predict(paths: list[str] | str, progress=gr.Progress()) -> tuple[list[dict], str]:  # noqa: B008
        """What the page shows of each file, and a link to the table of them."""
        paths = [paths] if isinstance(paths, str) else list(paths or [])
        if len(paths) > _MOST_FILES:
            return [], f"{len(paths)} files are too many at once: {_MOST_FILES} at most."
        context = contextvars.copy_context()  # by which gradio knows whose progress it is
        answers: list[Prediction] = []
        told: dict[str, float] = {}

        def hear(path: str, seconds: float) -> None:
            if seconds > longest:
                raise InputError(f"longer than {longest / 60:g} min")
            if seconds - told.get(path, 0.0) >= _TOLD_EVERY:
                told[path] = seconds
                said = f"{os.path.basename(path)}: {seconds / 60:.0f} min heard"
                context.copy().run(progress, (len(answers), len(paths)), desc=said, unit="files")

        for answer in predictor.stream(paths, spectrograms=True, hear=hear):
            answers.append(answer)
        return list(drawing.map(_shown, answers)), _table(answers, predictor)

    with gr.Blocks(title="mgc_jax", delete_cache=(_CLEARED_EVERY, _KEPT)) as page:
        what = "Tags" if predictor.tagging else "Genres"
        gr.Markdown(f"# {what} of your music\n`{title}`: {', '.join(predictor.genres)}")
        if predictor.notice:
            gr.Markdown(f"**This network was {predictor.notice}.**")
        with gr.Row():
            files = gr.File(
                label="Audio files", file_count="multiple", file_types=sorted(EXTENSIONS)
            )
            # Gradio's own leaves an empty file behind for each.
            files.preprocess = lambda uploads: [upload.path for upload in uploads or ()]
            recording = gr.Audio(
                label="Recording", sources=["microphone"], type="filepath", buttons=["download"]
            )
        status = gr.HTML(min_height=60)  # shows that it is busy, and with what
        results = gr.State([], time_to_live=_KEPT)
        shared = {"fn": predict, "outputs": [results, status], "concurrency_limit": _VISITORS}
        shared |= {"concurrency_id": "predict", "show_progress_on": status}
        files.upload(inputs=files, api_name="predict", **shared)
        recording.stop_recording(inputs=recording, api_name="predict_recording", **shared)
        gr.render(results)(_show)
    return page


def _shown(result: "Prediction") -> dict[str, Any]:
    """What the page keeps of an answer: little, as it does so for every visitor."""
    from mgc_jax.results.page import png
    from mgc_jax.timeline import plot_timeline

    found = {"path": result.source, "error": result.error}
    if result.error is None:
        found |= {"ranking": result.ranking, "what": "Tags" if result.tagging else "Genres"}
        found["unknown"] = result.unknown
        found["picture"] = png(plot_timeline(result, page=True), background="none")
    return found


def _table(results: Iterable["Prediction"], predictor: "Predictor") -> str:
    """A link to the answers as a CSV file, which is in the link itself."""
    from mgc_jax.answers import csv_cells, csv_columns
    from mgc_jax.results.page import data_url

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(csv_columns(predictor))
    for result in results:
        _, *values = csv_cells(result, predictor)
        writer.writerow([cell(os.path.basename(result.source), "./"), *values])
    link = data_url("text/csv", text.getvalue().encode(errors="backslashreplace"))
    return f'<a download="answers.csv" href="{link}">CSV</a>'


def _show(results: list[dict[str, Any]]) -> None:
    """Each answer: the sound, the picture of it, and the genres."""
    import gradio as gr

    from mgc_jax.results.page import data_url

    for result in results:
        name = os.path.basename(result["path"])
        if result["error"] is not None:
            gr.Markdown(f"### {name}\nThis file could not be used: {result['error']}")
            continue
        gr.Markdown(f"### {name}")
        if result["unknown"]:
            gr.Markdown("**Unknown**: it is like no genre that the network was trained on.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                gr.Audio(result["path"], interactive=False, buttons=["download"], label=name)
                gr.Label(result["ranking"], num_top_classes=10, label=result["what"])
            with gr.Column(scale=2, min_width=280):
                url = data_url("image/png", result["picture"])
                words = html.escape(f"Spectrogram of {name}, and below it the genres over time")
                gr.HTML(f'<img class="timeline" style="width:100%" alt="{words}" src="{url}">')


if __name__ == "__main__":
    cli.run("app")

"""A page that shows the genres of audio files dropped on it, or recorded.

    python -m mgc_jax.app --pretrained=msd_musicnn                              # tags, untrained
    python -m mgc_jax.app --workdir=runs/densenet
    python -m mgc_jax.app --workdir=runs/densenet --host=0.0.0.0 --port=8000    # for others too

Needs the extra `app` (pip install -e ".[app]"); the page loads nothing from other hosts.
"""

import os
from typing import TYPE_CHECKING

from absl import flags

from mgc_jax import cli, console, signals
from mgc_jax.errors import InputError

if TYPE_CHECKING:
    import gradio

    from mgc_jax.predictor import Prediction, Predictor

_VISITORS = 4  # served at a time; the others wait

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_network("predicts")
    cli.define_unknown()
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 is all.")
    flags.DEFINE_integer("port", 7860, "Port to listen at.", lower_bound=1, upper_bound=65535)


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

    page = build_page(
        mgc_jax.load(name, unknown=FLAGS.unknown), os.path.basename(os.path.abspath(name))
    )
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
        )
    except OSError as error:
        raise InputError(f"cannot listen at --port={FLAGS.port}: {error}") from None
    console.log.info("open %s in a browser; Ctrl-C ends", url)
    while not signals.stop_requested(seconds=60.0):
        pass
    signals.check()


def build_page(predictor: "Predictor", title: str) -> "gradio.Blocks":
    """The page; several visitors are served at once."""
    import gradio as gr

    def predict(paths: list[str] | str) -> list["Prediction"]:
        return predictor.predict(paths, spectrograms=True)

    with gr.Blocks(title="mgc_jax") as page:
        what = "Tags" if predictor.tagging else "Genres"
        gr.Markdown(f"# {what} of your music\n`{title}`: {', '.join(predictor.genres)}")
        if predictor.notice:
            gr.Markdown(f"**This network was {predictor.notice}.**")
        with gr.Row():
            files = gr.File(label="Audio files", file_count="multiple")
            recording = gr.Audio(label="Recording", sources=["microphone"], type="filepath")
        results = gr.State([])
        files.upload(predict, files, results, concurrency_limit=_VISITORS)
        recording.stop_recording(predict, recording, results, concurrency_limit=_VISITORS)
        gr.render(results)(_show)
    return page


def _show(results: list["Prediction"]) -> None:
    """Draws a part of the page for each file."""
    import gradio as gr

    from mgc_jax.timeline import plot_timeline

    for result in results:
        name = os.path.basename(result.source)
        if result.error is not None:
            gr.Markdown(f"### {name}\nThis file could not be used: {result.error}")
            continue
        gr.Markdown(f"### {name}")
        if result.unknown:
            gr.Markdown("**Unknown**: it is like no genre that the network was trained on.")
        with gr.Row():
            label = "Tags" if result.tagging else "Genres"
            gr.Label(result.ranking, num_top_classes=10, label=label, scale=1)
            gr.Plot(plot_timeline(result), show_label=False, scale=2)


if __name__ == "__main__":
    cli.run("app")

"""A run's model card: README.md in its workdir, in the form that the Hugging Face hub reads."""

import json
from collections.abc import Mapping, Sequence

from mgc_jax.results import page
from mgc_jax.results.published import SCORE_NAMES

_CARD = """---
library_name: mgc_jax
pipeline_tag: audio-classification
tags: [music, music-genre-classification, jax, flax]
metrics: [accuracy, f1]
model-index:
- name: {name}
  results:
  - task: {{type: audio-classification, name: Music genre classification}}
    dataset: {{name: {dataset}, type: {dataset}, split: test}}
    metrics:
    - {{type: accuracy, name: Top-1 of tracks, value: {top1:.4f}}}
    - {{type: f1, name: Macro F1 of tracks, value: {f1_macro:.4f}}}
---
# {title}

{notice}A music genre classifier of {parameters:,} parameters, trained by mgc_jax. It takes clips of
{seconds:g} s at {rate:,} Hz as {inputs}, and tells {count} genres apart: {genres}.

```bash
mgc_jax predict --workdir=THIS_FOLDER song.mp3
```

## Data

{listed:,} tracks of `{dataset}` were listed, {used:,} used.

{splits}
SHA-256 of tracks, clips, labels and splits: `{fingerprint}`.

## Scores

Test split, weights of epoch {epoch}, with 95% intervals bootstrapped over the test tracks.
{tracks} `report/index.html` has the rest.

{scores}
## Limits

- It always names one of its genres, also for music of none of them, and for what is no music.
- The scores are of music like that of its data, split as said; of other music they say little.
- The intervals hold the chance of the draw of tracks, not that of the training.
- Genres are what the labels of its data call so; its errors follow theirs.

Made by `{command}` on {devices}, {finished}.
"""
_SCORES = {"top1": "Top-1", "f1_macro": "Macro F1"} | dict(
    zip(
        SCORE_NAMES,
        ("F1 of mean precision and recall", "One-vs-rest accuracy", "Precision", "Recall"),
        strict=True,
    )
)


def model_card(
    config: Mapping,
    genres: Sequence[str],
    metrics: Mapping,
    data: Mapping,
    run: Mapping,
    tracks: str,
) -> str:
    """The card as Markdown, of what the report is told (see `report.write_report`).

    `tracks` says how clips are joined: see `metrics.describe_tracks`.
    """
    levels = [metrics[level] for level in ("track", "clip")]
    scores = [("Score", "Tracks", "Clips")]
    for key, name in _SCORES.items():
        of_tracks, of_clips = (
            f"{x[key]:.3f} ({page.interval(x['intervals'][key])})" for x in levels
        )
        scores.append((name, of_tracks, of_clips))
    splits = [("Split", "Tracks", "Clips")]
    splits += [(name, x["tracks"], x["clips"]) for name, x in data["splits"].items()]
    notice = "**Trained on synthesised music: it says nothing about real music.** "
    return _CARD.format(
        name=json.dumps(f"{config['model']} on {data['dataset']}"),
        title=f"{config['model']} on {data['dataset']}",
        dataset=data["dataset"],
        top1=levels[0]["top1"],
        f1_macro=levels[0]["f1_macro"],
        notice=notice if data["synthetic"] else "",
        parameters=run["parameters"],
        seconds=config["audio"]["clip_seconds"],
        rate=config["audio"]["sample_rate"],
        inputs=" and ".join(data["inputs"]),
        count=len(genres),
        genres=", ".join(genres),
        listed=data["tracks_listed"],
        used=data["tracks_used"],
        splits=_table(splits),
        fingerprint=data.get("fingerprint", "not recorded"),
        epoch=metrics["epoch"],
        tracks=tracks,
        scores=_table(scores),
        command=run["command"],
        devices=run["devices"],
        finished=run["finished"],
    )


def _table(rows: Sequence[Sequence]) -> str:
    head, *rest = (f"| {' | '.join(map(str, row))} |\n" for row in rows)
    return head + "|---|---:|---:|\n" + "".join(rest)

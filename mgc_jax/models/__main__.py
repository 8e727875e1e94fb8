"""Prints the layers of every network, with shapes, parameters and FLOPs of one clip.

python -m mgc_jax.models [NAME ...]
"""

import sys

import jax
import jax.numpy as jnp
from absl import flags

from mgc_jax import cli
from mgc_jax.configs import default
from mgc_jax.data.features import make_features
from mgc_jax.models import MODELS, count_parameters, create_model

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_integer("depth", 2, "Levels of modules to list.", lower_bound=1)
    flags.DEFINE_integer("width", 150, "Columns of the tables.", lower_bound=80)


def main(argv: list[str]) -> None:
    """Prints the networks named as arguments, or all."""
    config = default.get_config()
    totals = []
    for name in argv[1:] or MODELS:
        model = create_model(name)
        inputs = [jnp.zeros((1, *f.shape)) for f in make_features(model.inputs, config)]
        table = model.tabulate(
            jax.random.key(0),
            *inputs,
            train=False,
            depth=FLAGS.depth,
            compute_flops=True,
            console_kwargs={"width": FLAGS.width, "force_terminal": False},
        )
        sys.stdout.write(table)
        totals.append(_total(name, model, inputs))
    sys.stdout.write("\n".join(totals) + "\n")


def _total(name: str, model, inputs: list[jax.Array]) -> str:
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    forward = jax.jit(lambda variables: model.apply(variables, *inputs, train=False))
    gflop = forward.lower(variables).cost_analysis()["flops"] / 1e9
    return f"{name:14} {count_parameters(variables):>9,} parameters  {gflop:6.3f} GFLOP a clip"


if __name__ == "__main__":
    cli.run("models")

"""What the source project reported: FMA small, test split; clip or track level is not stated.

The numbers stand here once, for the report, the comparison and the tests.
"""

from typing import NamedTuple

# Of the scores below, as `metrics` names them, in the order of the source's table.
SCORE_NAMES = ("f1", "accuracy_ovr", "precision", "recall")
# The source's training, the same for all networks but for the batch size.
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 1e-4
NUM_EPOCHS = 20
TRACKS = 8_000
_MEL = "log-mel of 128 x 513 (axes not named)"
_WAVEFORM = "waveform at 16,000 Hz"


class Published(NamedTuple):
    """One network's row of the source's table.

    Attributes:
        scores: the four of `SCORE_NAMES`.
        batch_size: of its training.
        parameters: their number.
        inputs: in the source's words.
    """

    scores: tuple[float, float, float, float]
    batch_size: int
    parameters: int
    inputs: tuple[str, ...]


PUBLISHED = {
    "baseline_a_1d": Published((0.448, 0.864, 0.438, 0.457), 16, 645_080, (_WAVEFORM,)),
    "baseline_a_2d": Published((0.558, 0.889, 0.556, 0.559), 32, 661_058, (_MEL,)),
    "baseline_b": Published((0.534, 0.883, 0.537, 0.531), 32, 1_252_162, (_MEL,)),
    "densenet": Published((0.574, 0.892, 0.578, 0.571), 32, 6_955_784, (_MEL,)),
    "fusionnet": Published((0.553, 0.888, 0.548, 0.557), 8, 7_542_552, (_MEL, _WAVEFORM)),
}

"""From audio files to batches on the device; knows no training step and no network.

Nothing is imported here: worker processes import the light modules of this package alone.
"""

# Of the records' format: the last folder of a data set's path.
VERSION = "2.0.0"

"""Lists of tracks, and the TFDS builders that turn them into TFRecords of clips.

Nothing is imported here: worker processes import the light modules of this package alone.
"""

# Of the records' format: the last folder of a data set's path.
VERSION = "1.0.0"

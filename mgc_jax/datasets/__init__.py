"""Lists of tracks, and the TFDS builders that turn them into TFRecords of clips.

Nothing is imported here: worker processes import the light modules of this package alone.
"""

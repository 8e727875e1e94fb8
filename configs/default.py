"""Every config key, with the values that reproduce the source; the other configs override a few."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The default config."""
    config = ConfigDict()

    # Data set: fma_small, fma_medium, fma_large, audio_folder (one folder a genre) or demo.
    config.dataset = "fma_small"
    # Folder of prepared TFRecords.
    config.data_dir = "tfrecords"

    config.audio = ConfigDict()
    # Rate of the waveform, in Hz.
    config.audio.sample_rate = 16000
    # Length of a clip, in s.
    config.audio.clip_seconds = 10.0

    config.mel = ConfigDict()
    # Window of a frame, in samples.
    config.mel.n_fft = 2048
    # Distance of two frames, in samples.
    config.mel.hop_length = 1250
    # Mel bands.
    config.mel.n_mels = 513
    # Frames kept of each clip.
    config.mel.frames = 128
    # Range of the log-mel, in dB.
    config.mel.top_db = 80.0

    config.demo = ConfigDict()
    # Tracks that the demo data set synthesises, over all eight genres.
    config.demo.tracks = 96
    # Seed of their music.
    config.demo.seed = 0

    # Network: a name of mgc_jax.models.MODELS.
    config.model = "densenet"
    # Fields of the network's class to change, e.g. {"growth_rate": 16}.
    config.model_overrides = ConfigDict()

    # Weights to start from: a PyTorch state dict (.safetensors), or the workdir of another run.
    config.init_from = ""

    # Clips a step, over all devices.
    config.batch_size = 32
    # Passes over the training split.
    config.num_epochs = 20
    # AdamW's constant learning rate.
    config.learning_rate = 1e-4
    # AdamW's decoupled weight decay, on all parameters.
    config.weight_decay = 1e-4
    # Seed of the initial parameters and of the order of clips.
    config.seed = 0
    # Type that the network computes in; parameters and logits stay float32.
    config.dtype = "float32"
    return config

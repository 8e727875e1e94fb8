"""Every config key, with the values that reproduce the source; the other configs override a few."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The default config."""
    config = ConfigDict()

    # Data set: fma_small, fma_medium, fma_large, gtzan, audio_folder (one folder a genre) or demo.
    config.dataset = "fma_small"
    # Name of your collection, for several of one data set below one data_dir; "": the data set's.
    config.name = ""
    # Folder of prepared TFRecords.
    config.data_dir = "tfrecords"

    config.audio = ConfigDict()
    # Rate of the waveform, in Hz.
    config.audio.sample_rate = 16000
    # Length of a clip, in s.
    config.audio.clip_seconds = 10.0

    # Length of the stretch of a clip that the network sees, in s: a random one in each step; 0: the
    # whole clip. For stretches of whole tracks, store clips that are as long.
    config.crop_seconds = 0.0
    # How many of them, from the clip's start to its end, are averaged in evaluation and prediction.
    config.windows = 5

    config.mel = ConfigDict()
    # Window of a frame, in samples.
    config.mel.n_fft = 2048
    # Distance of two frames, in samples.
    config.mel.hop_length = 1250
    # Mel bands.
    config.mel.n_mels = 513
    # Frames kept of each clip.
    config.mel.frames = 128
    # Range of the log-mel, in dB; of absolute levels, music needs some 100.
    config.mel.top_db = 80.0
    # What 0 dB is: each clip's own maximum (max), or 50 dB of absolute power (fixed), and then the
    # network sees each band less its mean, by its deviation, over the training split.
    config.mel.reference = "max"

    config.mel96 = ConfigDict()
    # Window of a frame of musicnn's log-mel, in samples.
    config.mel96.n_fft = 512
    # Distance of two frames, in samples.
    config.mel96.hop_length = 256
    # Mel bands.
    config.mel96.n_mels = 96
    # Frames kept of each clip.
    config.mel96.frames = 626
    # Highest value of 10 log10(1 + 10000 x), in dB; samples of full scale stay below.
    config.mel96.top_db = 70.0

    config.demo = ConfigDict()
    # Tracks that the demo data set synthesises, over all eight genres.
    config.demo.tracks = 96
    # Seed of their music.
    config.demo.seed = 0

    # Network: a name of mgc_jax.models.MODELS.
    config.model = "densenet"
    # Fields of the network's class to change, e.g. {"growth_rate": 16}.
    config.model_overrides = ConfigDict()

    # Weights to start from: a PyTorch state dict (.safetensors), the workdir of another run, or the
    # name of published ones (`mgc_jax weights`).
    config.init_from = ""

    # Augmentation of the training clips; everything is off here.
    config.augment = ConfigDict()
    # Share of the clips that get white noise.
    config.augment.noise_probability = 0.0
    # Lowest and highest signal-to-noise ratio drawn, in dB over the whole clip.
    config.augment.noise_min_snr_db = 15.0
    config.augment.noise_max_snr_db = 40.0
    # Share of the clips that are stretched in time, at the same pitch.
    config.augment.stretch_probability = 0.0
    # Fastest rate drawn; its inverse is the slowest. A clip that ends early starts again.
    config.augment.stretch_max_rate = 1.25
    # Largest gain and attenuation, in dB; of waveforms, and of log-mels whose levels are
    # fixed: others are relative to their maximum.
    config.augment.gain_db = 0.0
    # Largest shift in time to either side, in s, in whole mel frames; what leaves one end comes in
    # at the other.
    config.augment.shift_seconds = 0.0
    # SpecAugment on log-mels: masks over time, and the longest, in frames.
    config.augment.time_masks = 0
    config.augment.time_mask_frames = 16
    # Masks over mel bands, and the widest, in bands.
    config.augment.mel_masks = 0
    config.augment.mel_mask_bands = 64
    # Mixup: clips and labels are blended by shares drawn from Beta(alpha, alpha).
    config.augment.mixup_alpha = 0.0

    # Clips a step, over all devices.
    config.batch_size = 32
    # Passes over the training split.
    config.num_epochs = 20
    # AdamW's learning rate, the highest of its schedule.
    config.learning_rate = 1e-4
    # AdamW's decoupled weight decay.
    config.weight_decay = 1e-4
    # Seed of the initial parameters and of the order of clips.
    config.seed = 0
    # Type that the network computes in; parameters and logits stay float32.
    config.dtype = "float32"
    # What the target keeps back for all classes alike, in [0, 1).
    config.label_smoothing = 0.0
    # Weigh each clip by clips / (classes * clips of its genre), for unbalanced sets.
    config.balance_classes = False
    # Decay of the running average of the variables that is evaluated and saved as best; 0: none.
    config.average_decay = 0.0
    # Which epoch is evaluated and predicts: that of the lowest validation loss (loss), of the
    # highest validation top-1 of clips (top1), or the last one (last).
    config.keep = "loss"
    # Stop once the validation loss has not improved for so many epochs; 0: never.
    config.early_stopping_epochs = 0
    # Pass over steps whose loss or gradient is not finite, and count them, instead of stopping.
    config.skip_nonfinite = False
    # Save checkpoints/last this often, besides after each epoch.
    config.checkpoint_every_minutes = 10.0
    # Share of each device's memory that may hold stored clips, so that a step gathers them there;
    # what does not fit is copied step by step. Of no account on a CPU; 0: none.
    config.device_cache = 0.25
    # Write a JAX profile of steps 6 to 10 to WORKDIR/profile.
    config.profile = False

    config.optimizer = ConfigDict()
    # AdamW's decay of the running mean of gradients.
    config.optimizer.b1 = 0.9
    # AdamW's decay of the running mean of squared gradients.
    config.optimizer.b2 = 0.999
    # AdamW's term against division by zero.
    config.optimizer.eps = 1e-8
    # Decay all parameters, as the source did; False: kernels only.
    config.optimizer.decay_biases_and_norms = True
    # Learning rate over time: constant, or cosine (to 0 at the end).
    config.optimizer.schedule = "constant"
    # Epochs over which the learning rate rises from 0 first.
    config.optimizer.warmup_epochs = 0.0
    # Largest global norm of the gradients; 0: any.
    config.optimizer.clip_norm = 0.0
    # Parts of a batch computed one after another, to need less memory; each has batch statistics of
    # its own.
    config.optimizer.accumulate = 1
    # Parameters that stay as they start: a regular expression that their path begins with, such as
    # "features/" of densenet. Their batch-norm statistics still follow the data.
    config.optimizer.freeze = ""

    config.probe = ConfigDict()
    # What `mgc_jax probe` tries; the validation tracks choose. Penalties are scikit-learn's C, of
    # which lower ones keep a head simpler. Logistic regressions; (): none.
    config.probe.logistic_penalties = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    # Machines of radial basis functions; (): none.
    config.probe.radial_penalties = (1.0, 3.0, 10.0, 30.0)
    # Their gammas, times the number of statistics.
    config.probe.radial_gammas = (0.25, 0.5, 1.0, 2.0)
    # Most training tracks for a radial machine, whose memory grows by their square.
    config.probe.radial_tracks = 20000
    # Fit the chosen head once more, to training and validation tracks together.
    config.probe.refit = True
    return config

"""The networks in plain PyTorch, to compare speed with: same layers, same names, same sizes.

Runs in a process of its own, as PyTorch's users start it. Pictures are `channels_last`. On a CPU
everything runs eagerly, on all cores; on CUDA the loss and the prediction go through
`torch.compile`, with TF32, and with bfloat16 autocast if asked.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def pool_mean_max(x: torch.Tensor) -> torch.Tensor:
    """`[batch, channels, ...]` to `[batch, 2 * channels]`."""
    x = x.flatten(2)
    return torch.cat([x.mean(2), x.amax(2)], 1)


class Head(nn.Module):
    """Dense layers with ReLU between them."""

    def __init__(self, channels: int, hidden: tuple[int, ...], classes: int):
        super().__init__()
        for i, width in enumerate(hidden):
            self.add_module(f"dense{i}", nn.Linear(channels, width))
            channels = width
        self.hidden = list(self.children())
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.classifier(x)


class BaselineA2D(nn.Module):
    inputs = ("mel",)

    def __init__(self, mels: int, classes: int):
        super().__init__()
        self.conv0 = nn.Conv2d(1, 128, (4, mels))
        self.norm0 = nn.BatchNorm2d(128)
        self.conv1 = nn.Conv2d(128, 128, (4, 1))
        self.norm1 = nn.BatchNorm2d(128)
        self.conv2 = nn.Conv2d(128, 256, (4, 1))
        self.norm2 = nn.BatchNorm2d(256)
        self.head = Head(512, (300, 150), classes)

    def forward(self, mel):
        x = functional.max_pool2d(torch.relu(self.norm0(self.conv0(mel[:, None]))), (2, 1))
        x = functional.max_pool2d(torch.relu(self.norm1(self.conv1(x))), (2, 1))
        return self.head(pool_mean_max(torch.relu(self.norm2(self.conv2(x)))))


class BaselineB(nn.Module):
    inputs = ("mel",)

    def __init__(self, mels: int, classes: int):
        super().__init__()
        self.conv0 = nn.Conv2d(1, 256, (4, mels))
        self.norm0 = nn.BatchNorm2d(256)
        self.conv1 = nn.Conv2d(256, 256, (4, 1), padding=(2, 0))
        self.norm1 = nn.BatchNorm2d(256)
        self.conv2 = nn.Conv2d(256, 256, (4, 1), padding=(1, 0))
        self.norm2 = nn.BatchNorm2d(256)
        self.head = Head(512, (300, 150), classes)

    def forward(self, mel):
        a = torch.relu(self.norm0(self.conv0(mel[:, None])))
        c = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(a)))))
        return self.head(pool_mean_max(torch.relu(a + c)))


class WaveformTrunk(nn.Module):
    def __init__(self):
        super().__init__()
        inputs = 1
        for i, channels in enumerate((16, 32, 64, 128, 256)):
            shape = {"kernel_size": 13, "padding": 6} if i else {"kernel_size": 964, "stride": 16}
            self.add_module(f"conv{i}", nn.Conv1d(inputs, channels, **shape))
            self.add_module(f"norm{i}", nn.BatchNorm1d(channels))
            inputs = channels
        layers = list(self.children())
        self.layers = list(zip(layers[::2], layers[1::2], (4, 4, 2, 2, 2), strict=True))

    def forward(self, waveform):
        x = waveform[:, None]
        for conv, norm, pool in self.layers:
            x = functional.max_pool1d(torch.relu(norm(conv(x))), pool)
        return x


class BaselineA1D(nn.Module):
    inputs = ("waveform",)

    def __init__(self, mels: int, classes: int):
        super().__init__()
        self.trunk = WaveformTrunk()
        self.head = Head(256, (150, 150), classes)

    def forward(self, waveform):
        return self.head(self.trunk(waveform).mean(2))


class DenseLayer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 128, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(128)
        self.conv2 = nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(torch.relu(self.norm1(x)))
        y = self.conv2(torch.relu(self.norm2(y)))
        return torch.cat([x, y], 1)


class Transition(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x):
        return functional.avg_pool2d(self.conv(torch.relu(self.norm(x))), 2)


class DenseNetFeatures(nn.Module):
    """DenseNet-121 without its classifier: `[batch, height, width]` to `[batch, 1024]`."""

    def __init__(self):
        super().__init__()
        channels = 64
        self.conv0 = nn.Conv2d(1, channels, 7, stride=2, padding=3, bias=False)
        self.norm0 = nn.BatchNorm2d(channels)
        self.blocks = []  # a plain list, so that the names stay ours
        for i, size in enumerate((6, 12, 24, 16), start=1):
            for j in range(1, size + 1):
                self._append(f"denseblock{i}_denselayer{j}", DenseLayer(channels))
                channels += 32
            if i < 4:
                self._append(f"transition{i}", Transition(channels))
                channels //= 2
        self.norm5 = nn.BatchNorm2d(channels)

    def _append(self, name: str, block: nn.Module) -> None:
        self.add_module(name, block)
        self.blocks.append(block)

    def forward(self, picture):
        x = torch.relu(self.norm0(self.conv0(picture[:, None])))
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return torch.relu(self.norm5(x)).mean((2, 3))


class DenseNet121(nn.Module):
    inputs = ("mel",)

    def __init__(self, mels: int, classes: int):
        super().__init__()
        self.features = DenseNetFeatures()
        self.classifier = nn.Linear(1024, classes)

    def forward(self, mel):
        return self.classifier(self.features(mel))


class FusionNet(nn.Module):
    inputs = ("mel", "waveform")

    def __init__(self, mels: int, classes: int):
        super().__init__()
        self.densenet = DenseNetFeatures()
        self.trunk = WaveformTrunk()
        self.classifier = nn.Linear(1536, classes)

    def forward(self, mel, waveform):
        pooled = [self.densenet(mel), pool_mean_max(self.trunk(waveform))]
        return self.classifier(torch.cat(pooled, 1))


class Musicnn(nn.Module):
    """As it is fine-tuned: statistics of norms and the norm of the input stay."""

    inputs = ("mel96",)
    filters = ((204, 7, 38), (204, 7, 67), (51, 128, 1), (51, 64, 1), (51, 32, 1))

    def __init__(self, mels: int, classes: int):
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1, eps=1e-3).requires_grad_(False)
        self.front = nn.ModuleList(nn.Conv2d(1, n, size) for n, *size in self.filters)
        self.front_norms = nn.ModuleList(nn.BatchNorm2d(n, eps=1e-3) for n, *_ in self.filters)
        self.middle = nn.ModuleList(nn.Conv1d(n, 64, 7, padding=3) for n in (561, 64, 64))
        self.middle_norms = nn.ModuleList(nn.BatchNorm1d(64, eps=1e-3) for _ in range(3))
        self.pooled_norm = nn.BatchNorm1d(1506, eps=1e-3)
        self.penultimate = nn.Linear(1506, 200)
        self.penultimate_norm = nn.BatchNorm1d(200, eps=1e-3)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(200, classes)

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, mel96):
        starts = np.linspace(0, mel96.shape[1] - 187, mel96.shape[1] // 187).round().astype(int)
        x = torch.stack([mel96[:, start : start + 187] for start in starts], 1)
        x = self.input_norm(x.flatten(0, 1)[:, None])
        front = []
        for conv, norm in zip(self.front, self.front_norms, strict=True):
            width = conv.kernel_size[0]
            padded = functional.pad(x, (0, 0, (width - 1) // 2, width // 2))
            front.append(norm(torch.relu(conv(padded))).amax(3))
        layers = [torch.cat(front, 1)]
        for i, (conv, norm) in enumerate(zip(self.middle, self.middle_norms, strict=True)):
            y = norm(torch.relu(conv(layers[-1])))
            layers.append(y + layers[-1] if i else y)
        x = torch.cat(layers, 1)
        x = self.dropout(self.pooled_norm(torch.stack([x.amax(2), x.mean(2)], 2).flatten(1)))
        x = self.dropout(self.penultimate_norm(torch.relu(self.penultimate(x))))
        return self.classifier(x.unflatten(0, (-1, len(starts))).mean(1))


_NETWORKS = {
    "baseline_a_1d": BaselineA1D,
    "baseline_a_2d": BaselineA2D,
    "baseline_b": BaselineB,
    "densenet": DenseNet121,
    "fusionnet": FusionNet,
    "musicnn": Musicnn,
}


class Rival:
    """One network in PyTorch with its optimiser, as steps that a benchmark can time.

    Args:
        name: a key of `_NETWORKS`.
        mels: bands of the picture.
        classes: logits.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        bfloat16: run under bfloat16 autocast.
        cuda: on the GPU, compiled; else on the CPU, eagerly.
        threads: of the CPU.
    """

    def __init__(
        self,
        name: str,
        *,
        mels: int,
        classes: int,
        learning_rate: float,
        weight_decay: float,
        bfloat16: bool,
        cuda: bool,
        threads: int,
    ):
        _set_up(threads)
        self._cuda = cuda
        self._device = torch.device("cuda" if cuda else "cpu")
        self._autocast = {"device_type": self._device.type, "dtype": torch.bfloat16}
        self._autocast["enabled"] = bfloat16
        self.model = _NETWORKS[name](mels, classes)
        self.model.to(self._device, memory_format=torch.channels_last)
        # The fused optimiser is the fastest one that PyTorch has.
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
        )

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def train_step(self, batch: Mapping[str, np.ndarray]) -> Callable[[int], None]:
        """A function that runs that many train steps on one batch, and waits for the last."""
        loss_fn = self._compiled(self._loss)
        batch = self._put(batch)

        def run(steps: int) -> None:
            self.model.train()
            for _ in range(steps):
                self._optimizer.zero_grad(set_to_none=True)
                loss, _top1 = loss_fn(batch)
                loss.backward()
                self._optimizer.step()
            self._wait()

        return run

    def predict_step(self, batch: Mapping[str, np.ndarray]) -> Callable[[int], None]:
        """A function that predicts one batch that many times, and waits for the last."""
        predict = self._compiled(self._predict)
        batch = self._put(batch)

        def run(steps: int) -> None:
            self.model.eval()
            with torch.inference_mode():
                for _ in range(steps):
                    predict(batch)
            self._wait()

        return run

    def _loss(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits, label = self._logits(batch), batch["label"]
        top1 = (logits.detach().argmax(1) == label).float().mean()
        return functional.cross_entropy(logits, label), top1

    def _predict(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return functional.log_softmax(self._logits(batch), 1)

    def _logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        inputs = [_to_network_input(name, batch[name]) for name in self.model.inputs]
        with torch.autocast(**self._autocast):
            return self.model(*inputs).float()

    def _put(self, batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        batch = {name: torch.from_numpy(array).to(self._device) for name, array in batch.items()}
        return batch | {"label": batch["label"].long()}

    def _compiled(self, function: Callable) -> Callable:
        # One compilation a batch size, as XLA does, not one for all sizes.
        return torch.compile(function, dynamic=False) if self._cuda else function

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def _set_up(threads: int) -> None:
    torch.compiler.reset()  # its limit of recompilations counts over all networks
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    # XLA tunes its convolutions too.
    torch.backends.cudnn.benchmark = True


def _to_network_input(name: str, stored: torch.Tensor) -> torch.Tensor:
    if name == "mel96":
        return stored.float() * (70 / 2550)
    return stored.float() / 255 * 2 - 1 if name == "mel" else stored.float() / 32768


_rival = _run = None


def make(*args, **kwargs) -> int:
    """Makes this process's network, as `Rival` does; returns its parameters."""
    global _rival
    _rival = Rival(*args, **kwargs)
    return _rival.parameters


def choose(step: str, batch: Mapping[str, np.ndarray]) -> None:
    """Chooses what to time: `train_step` or `predict_step`, on one batch."""
    global _run
    _run = getattr(_rival, step)(batch)


def seconds(steps: int) -> float:
    """Times that many steps."""
    start = time.perf_counter()
    _run(steps)
    return time.perf_counter() - start

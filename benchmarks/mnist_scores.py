"""Scores of models trained on MNIST, by a classifier that is trained here.

    python -m benchmarks.mnist_scores --root data runs/dcgan/version_0/checkpoints/last.ckpt ...

A convolutional classifier is trained on the 60,000 training digits and judges 10,000 samples of each checkpoint. For
comparison it judges 10,000 training digits in the same way. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional import accuracy

from lightning_gen.data import MNIST
from lightning_gen.data.images import from_uint8, to_uint8
from lightning_gen.generative import GenerativeModule, Samples

NUM_SAMPLES = 10_000
FEATURES = 128


class Classifier(nn.Module):
    """Digits `[N, 1, 28, 28]` in `[-1, 1]` to features `[N, 128]` and logits `[N, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 49, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        features = self.features(images)
        return features, self.head(F.dropout(features, 0.5, self.training))


def train(images: Tensor, labels: Tensor, epochs: int) -> Classifier:
    """The classifier after some passes over the training digits."""
    torch.manual_seed(0)
    classifier = Classifier()
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-3)
    steps = epochs * (len(images) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(128)[: steps // epochs]:
            loss = F.cross_entropy(classifier(from_uint8(images[chosen]))[1], labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


@torch.no_grad()
def judged(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features `[N, 128]` and log-probabilities `[N, 10]` of 8-bit digits, in float64."""
    parts = [classifier(from_uint8(part)) for part in images.split(500)]
    features, logits = (torch.cat(column).double() for column in zip(*parts, strict=True))
    return features, logits.log_softmax(dim=1)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Between Gaussians fitted to two sets of features `[N, D]`."""
    difference, covariances = x.mean(0) - y.mean(0), (x.T.cov(), y.T.cov())
    # The trace of the root of a product of two covariances is the sum of the roots of its eigenvalues.
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp_min(0).sqrt()
    return float(difference.square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * roots.sum())


def scores(features: Tensor, log_probs: Tensor, reference: Tensor) -> dict[str, float]:
    """Classifier score exp E KL(p(y|x) || p(y)), Fréchet distance to the test digits, and two shares."""
    marginal = log_probs.exp().mean(0)
    kl = (log_probs.exp() * (log_probs - marginal.log())).sum(1).mean()
    counts = torch.bincount(log_probs.argmax(1), minlength=10) / len(log_probs)
    return {
        "classifier score": float(kl.exp()),
        "Fréchet distance": frechet_distance(features, reference),
        "sure (p > 0.95)": float((log_probs.exp().amax(1) > 0.95).double().mean()),
        "rarest class": float(counts.min()),
    }


def samples_of(path: Path) -> tuple[str, Tensor]:
    """Name of a checkpoint's model, and its 8-bit samples."""
    model = GenerativeModule.load_from_checkpoint(path).eval()
    if not isinstance(model, Samples) or model.image_shape != (1, 28, 28):
        raise SystemExit(f"{path} holds no model that draws 1 x 28 x 28 pictures.")
    return type(model).__name__, to_uint8(model.sample(NUM_SAMPLES, generator=torch.Generator().manual_seed(0)))


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and scores, of real digits first."""
    data = MNIST(arguments.root, num_val=0, download=arguments.download)
    (images, labels), (test_images, test_labels) = data.load("train"), data.load("test")
    classifier = train(images, labels, arguments.epochs)
    reference, log_probs = judged(classifier, test_images)
    right = accuracy(log_probs.argmax(1), test_labels, "multiclass", num_classes=10)
    print(f"Classifier: {100 * right:.2f} % of 10,000 test digits right.\n")
    yield "training digits", scores(*judged(classifier, images[:NUM_SAMPLES]), reference)
    for path in arguments.checkpoints:
        name, samples = samples_of(path)
        yield name, scores(*judged(classifier, samples), reference)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mnist_scores")
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--root", default="data", help="folder of MNIST, as torchvision's root")
    parser.add_argument("--download", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--epochs", type=int, default=4, help="of the classifier")
    for i, (name, figures) in enumerate(rows(parser.parse_args(arguments))):
        if i == 0:
            print(f"{NUM_SAMPLES} samples each".ljust(24) + "".join(f"{key:>20}" for key in figures))
        print(name.ljust(24) + "".join(f"{value:20.3f}" for value in figures.values()))


if __name__ == "__main__":
    main()

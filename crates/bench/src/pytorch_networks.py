"""The two networks in PyTorch. Handed to Python in front of the script that measures them."""

from torch import nn


def alexnet():
    return nn.Sequential(
        nn.Conv2d(3, 96, 4), nn.ReLU(),
        nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(9216, 4096), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU(),
        nn.Linear(4096, 10),
    )


def small_alexnet():
    return nn.Sequential(
        nn.Conv2d(3, 64, 7), nn.ReLU(),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(3200, 2048), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(2048, 2048), nn.ReLU(),
        nn.Linear(2048, 10),
    )


NETWORKS = {"alexnet": alexnet, "small-alexnet": small_alexnet}

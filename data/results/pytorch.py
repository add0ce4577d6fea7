"""Trains by the post's recipe with PyTorch, dropout in the first epoch only: the counterpart of `--dropout-epochs 1`.

    pytorch.py NETWORK [--seed N] [--epochs N] [--threads N] [--data-dir DIR]

Prints a line of JSON after each epoch, with the keys of `metrics.jsonl`. The recipe is that of the post's code (main.py,
commit b37eccd); crops and flips are computed for a whole batch at once, with torchvision's distributions.
"""

import argparse
import json
import pathlib
import time

import numpy
import torch
from torch import nn

BATCH_SIZE = 500


def alexnet(c1, kernel, c2, c3, c4, c5, features, hidden):
    convolutions = [
        *(nn.Conv2d(3, c1, kernel), nn.ReLU()),
        *(nn.Conv2d(c1, c2, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c3, c4, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c4, c5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    ]
    classifier = [
        *(nn.Dropout(0.5), nn.Linear(features, hidden), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, 10),
    ]
    return nn.Sequential(*convolutions, nn.Flatten(), *classifier)


# Arguments of `alexnet`, and the patience of the scheduler.
NETWORKS = {
    "alexnet": ((96, 4, 256, 384, 384, 256, 9216, 4096), 5),
    "small-alexnet": ((64, 7, 192, 256, 256, 128, 3200, 2048), 2),
}


def read(folder, names):
    """Images as `[n, 3, 32, 32]` of bytes, and labels, from files of CIFAR-10's binary version."""
    records = numpy.concatenate([numpy.fromfile(folder / name, numpy.uint8).reshape(-1, 3073) for name in names])
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(records[:, 0].astype(numpy.int64))


def normalised(images):
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(images):
    """Padded by 4 black pixels, flipped with probability 1/2, and cropped at random."""
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    n = len(images)
    flipped = torch.rand(n) < 0.5
    padded[flipped] = padded[flipped].flip(3)
    offsets = torch.arange(32)
    rows = torch.randint(0, 9, (n,)).view(n, 1) + offsets
    columns = torch.randint(0, 9, (n,)).view(n, 1) + offsets
    image, channel = torch.arange(n).view(n, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1)
    return padded[image, channel, rows.view(n, 1, 32, 1), columns.view(n, 1, 1, 32)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-dir", type=pathlib.Path, default="data")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    sizes, patience = NETWORKS[args.network]
    network = alexnet(*sizes).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.1, patience=patience)
    loss_of = nn.CrossEntropyLoss()
    folder = args.data_dir / "cifar-10-batches-bin"
    train_images, train_labels = read(folder, [f"data_batch_{number}.bin" for number in range(1, 6)])
    test_images, test_labels = read(folder, ["test_batch.bin"])

    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        lr = optimiser.param_groups[0]["lr"]
        network.train(epoch == 1)
        train_loss = train_correct = 0.0
        for indices in torch.randperm(len(train_images)).split(BATCH_SIZE):
            labels = train_labels[indices]
            scores = network(normalised(augmented(train_images[indices])))
            loss = loss_of(scores, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            train_loss += loss.item() * len(labels)
            train_correct += (scores.argmax(1) == labels).sum().item()
        network.eval()
        test_loss = test_correct = 0.0
        with torch.no_grad():
            for images, labels in zip(test_images.split(BATCH_SIZE), test_labels.split(BATCH_SIZE)):
                scores = network(normalised(images))
                test_loss += loss_of(scores, labels).item() * len(labels)
                test_correct += (scores.argmax(1) == labels).sum().item()
        metrics = {
            "epoch": epoch,
            "train_loss": train_loss / len(train_images),
            "train_accuracy": train_correct / len(train_images),
            "test_loss": test_loss / len(test_images),
            "test_accuracy": test_correct / len(test_images),
            "learning_rate": lr,
            "seconds": time.perf_counter() - start,
        }
        print(json.dumps(metrics), flush=True)
        scheduler.step(metrics["test_loss"])


main()

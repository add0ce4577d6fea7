"""Images per second of a network in PyTorch on a processor, for `cargo xtask bench --against-pytorch`.

The step is the one that the Rust program times: a batch of normalised images in, forward, softmax cross-entropy, backward,
SGD with momentum and weight decay; in bf16, forward pass and loss are under autocast. The batch lies ready in memory, so
nothing is spent on loading or augmenting it.
The program defines `network()` in front of this script. Prints one JSON object.
"""

import argparse
import json
import resource
import sys
import time

import torch
from torch import nn


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pass", dest="which", choices=["train", "eval"], required=True)
    parser.add_argument("--layout", choices=["contiguous", "channels-last"], required=True)
    parser.add_argument("--precision", choices=["f32", "bf16"], required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    memory_format = torch.channels_last if args.layout == "channels-last" else torch.contiguous_format
    model = network().to(memory_format=memory_format)
    images = torch.randn(args.batch_size, 3, 32, 32).contiguous(memory_format=memory_format)
    labels = torch.randint(0, 10, (args.batch_size,))
    run = torch.compile(model) if args.compile else model
    loss_of = nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def forward():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            return loss_of(run(images), labels)

    def train():
        optimiser.zero_grad()
        loss = forward()
        loss.backward()
        optimiser.step()
        return loss.item()

    def evaluate():
        with torch.no_grad():
            return forward().item()

    step = train if args.which == "train" else evaluate
    model.train(args.which == "train")
    # The first steps, on fresh memory and with compilation, do not count.
    for _ in range(2):
        step()
    steps = 0
    start = time.perf_counter()
    while steps < 2 or time.perf_counter() - start < args.seconds:
        step()
        steps += 1
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    json.dump({
        "images_per_second": steps * args.batch_size / seconds,
        "steps": steps,
        "peak_bytes": peak,
        "version": torch.__version__,
    }, sys.stdout)
    print()


if __name__ == "__main__":
    main()

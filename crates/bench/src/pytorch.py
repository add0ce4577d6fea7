"""Images per second of a network in PyTorch, for `cargo xtask bench --against-pytorch`.

The step is the one that the Rust program times: a batch of normalised images in, forward, softmax cross-entropy, backward,
SGD with momentum and weight decay; in bf16, forward pass and loss are under autocast. The batch lies ready in memory, so
nothing is spent on loading or augmenting it. On a GPU, cuDNN chooses its algorithms by trying them, SGD is fused, and the
loss is read every 20 steps.
The program defines `network()` in front of this script. Prints one JSON object as its last line.
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
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()

    on_gpu = args.device == "cuda"
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = args.precision != "f32"
    torch.backends.cuda.matmul.allow_tf32 = args.precision != "f32"
    memory_format = torch.channels_last if args.layout == "channels-last" else torch.contiguous_format
    model = network().to(args.device).to(memory_format=memory_format)
    images = torch.randn(args.batch_size, 3, 32, 32, device=args.device).contiguous(memory_format=memory_format)
    labels = torch.randint(0, 10, (args.batch_size,), device=args.device)
    run = torch.compile(model, mode="max-autotune" if on_gpu else None) if args.compile else model
    loss_of = nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=on_gpu or None)

    def forward():
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            return loss_of(run(images), labels)

    def train():
        optimiser.zero_grad()
        loss = forward()
        loss.backward()
        optimiser.step()
        return loss.detach()

    def evaluate():
        with torch.no_grad():
            return forward()

    step = train if args.which == "train" else evaluate
    together = 20 if on_gpu else 1

    def steps_together():
        for _ in range(together):
            loss = step()
        return loss.item()

    model.train(args.which == "train")
    # The first steps, on fresh memory and with compilation, do not count.
    for _ in range(2):
        steps_together()
    steps = 0
    start = time.perf_counter()
    while steps < 2 or time.perf_counter() - start < args.seconds:
        steps_together()
        steps += together
    seconds = time.perf_counter() - start
    if on_gpu:
        peak = torch.cuda.max_memory_reserved()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({
        "images_per_second": steps * args.batch_size / seconds,
        "steps": steps,
        "peak_bytes": peak,
        "version": torch.__version__,
    }))


if __name__ == "__main__":
    main()

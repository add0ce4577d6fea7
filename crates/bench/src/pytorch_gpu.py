"""Images per second of a network in PyTorch on an NVIDIA GPU, for `cargo xtask gpu-check`.

PyTorch at its best: images and labels lie on the GPU, normalised and ready (so it neither loads nor augments), channels last,
cuDNN chooses its algorithms by trying them, SGD is fused, the loss is read at the end alone; as it is, and with `--compiled`
compiled as well.
The program defines `network()` in front of this script. Prints one JSON object as its last line.
"""

import argparse
import json
import sys
import time

import torch
from torch import nn


def rate(args, compiled):
    torch.manual_seed(0)
    model = network().cuda().to(memory_format=torch.channels_last)
    images = torch.randn(args.batch_size, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (args.batch_size,), device="cuda")
    loss_of = nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    run = torch.compile(model, mode="max-autotune") if compiled else model
    narrow = args.precision == "bf16"

    def step():
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=narrow):
            loss = loss_of(run(images), labels)
        loss.backward()
        optimiser.step()
        return loss.detach()

    for _ in range(20):
        step()
    torch.cuda.synchronize()
    steps = 0
    start = time.perf_counter()
    while steps < 20 or time.perf_counter() - start < args.seconds:
        for _ in range(20):
            step()
        torch.cuda.synchronize()
        steps += 20
    return steps * args.batch_size / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()

    torch.backends.cudnn.benchmark = True
    fast = args.precision != "f32"
    torch.backends.cudnn.allow_tf32 = fast
    torch.backends.cuda.matmul.allow_tf32 = fast
    rates = {"eager": rate(args, False)}
    if args.compiled:
        try:
            rates["compiled"] = rate(args, True)
        except Exception as error:  # The compiler needs Triton and a C compiler, which not every machine has.
            print(f"not compiled: {error}", file=sys.stderr)
            rates["compiled"] = None
    print(json.dumps({"version": torch.__version__, "images_per_second": rates}))


if __name__ == "__main__":
    main()

"""Multiply-adds a cycle of the inner loops of an ARM assembly file, computed by llvm-mca: see PERFORMANCE.md.

    python3 inner_loops.py LLVM_MCA FILE.s
"""

import re
import subprocess
import sys


def inner_loops(lines):
    """The instructions of each block that ends with a branch to its own start."""
    label, block = None, []
    for line in lines:
        if start := re.match(r"([\w.$]+):", line):
            label, block = start[1], []
        elif line.startswith("\t") and not line.startswith("\t."):
            block.append(line)
            if (branch := re.match(r"\tc?bn?[.z]?\w*\s+(?:\w+, )?(\.LBB\w+)$", line)) and branch[1] == label:
                yield block


def multiply_adds_per_cycle(llvm_mca, cpu, block, iterations=200):
    command = [llvm_mca, "-march=aarch64", f"-mcpu={cpu}", f"-iterations={iterations}"]
    result = subprocess.run(command, input="\n".join(block), capture_output=True, text=True, check=True)
    cycles = int(re.search(r"Total Cycles:\s+(\d+)", result.stdout)[1])
    return iterations * sum("fmla" in line for line in block) / cycles


llvm_mca, path = sys.argv[1:]
found = set()
for block in inner_loops(open(path).read().splitlines()):
    by_element = sum(bool(re.search(r"fmla.*\.s\[\d\]", line)) for line in block)
    if by_element >= 16:
        spills = sum("[sp" in line for line in block)
        rates = [multiply_adds_per_cycle(llvm_mca, cpu, block) for cpu in ("neoverse-v2", "neoverse-n1")]
        found.add((by_element, spills, *(f"{rate:.2f}" for rate in rates)))
print("| multiply-adds | spills | neoverse-v2, of 4 | neoverse-n1, of 2 |\n|---|---|---|---|")
for row in sorted(found, reverse=True):
    print("| " + " | ".join(map(str, row)) + " |")

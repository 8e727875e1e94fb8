#!/usr/bin/env bash
# Everything to measure on a GPU, in one call of under ten minutes, ending in a Markdown table for RESULTS.md:
#
#     EXTRAS=cuda ./launch.sh setup && .venv/bin/pip install torch    # PyTorch is left out where it is missing
#     benchmarks/gpu.sh
#
# Train steps of the five networks in bfloat16 and float32 (TF32) with 32, 256 and 1,024 clips, beside PyTorch's
# (torch.compile, channels_last, bfloat16 autocast); then training end to end with its augmentation, clips copied step
# by step and lying on the device. The most telling come first, and what does not fit into MINUTES is left out.
# REHEARSE=1 runs a little of everything on a CPU. What it says goes to OUT (default: gpu-results) too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-gpu-results}
deadline=$((60 * ${MINUTES:-9}))
mkdir -p "$out"
: > "$out/log"

# Runs a benchmark for as long as there is time; a part that fails or runs out of time costs its own rows only.
measure() {
  local left=$((deadline - SECONDS))
  [[ $left -gt 15 ]] || { echo "# no time left for: $*" | tee -a "$out/log"; return 0; }
  echo "# $*" | tee -a "$out/log"
  timeout "$left" "$python" "benchmarks/$1.py" "${@:2}" 2>&1 | tee -a "$out/log" || echo "# stopped: $*" | tee -a "$out/log"
}

torch=()
if "$python" -c 'import torch' 2> /dev/null; then torch=(--torch); fi
steps=(networks --part=train --repetitions=3)
clips=(input_pipeline --clips=4096)
if [[ -n ${REHEARSE:-} ]]; then
  measure "${steps[@]}" --networks=baseline_a_2d --dtype=bfloat16 --batch=4
  measure "${clips[@]}" --clips=64 --seconds=0.1 --config=baseline_a_2d --config.batch_size=4
else
  measure "${steps[@]}" "${torch[@]}" --networks=densenet,baseline_a_2d --dtype=bfloat16 --batch=256 --profile="$out/trace"
  for network in densenet baseline_a_2d; do
    measure "${clips[@]}" --config=$network --config.batch_size=256 --config.dtype=bfloat16
  done
  measure "${steps[@]}" --networks=densenet,baseline_a_2d --dtype=float32 --batch=256
  measure "${steps[@]}" --networks=densenet,baseline_a_2d --dtype=bfloat16 --batch=1024
  measure "${steps[@]}" "${torch[@]}" --networks=baseline_b,baseline_a_1d,fusionnet --dtype=bfloat16 --batch=256
  for batch in 32 1024; do
    measure "${steps[@]}" --networks=baseline_a_2d,baseline_b,baseline_a_1d,densenet --dtype=float32 --batch=$batch
  done
  measure "${steps[@]}" --networks=densenet,baseline_a_2d,baseline_b,baseline_a_1d --dtype=bfloat16 --batch=32
fi

"$python" - "$out/log" <<'TABLE'
"""The lines of the log as tables: rows that were measured before the time was over are in it."""
import json
import re
import sys

words, machine, dtype, config, steps, loops = [], {}, "", "", [], []
text = open(sys.argv[1]).read()
for line in text.splitlines():
    if line.startswith("# "):
        words = line.split()
    if found := re.search(r"machine: (\{.*)", line):
        machine = json.loads(found[1])
        dtype = machine["dtype"]
    if found := re.search(r"(\w+) train: (\{.*)", line):
        row = json.loads(found[2])
        theirs = f"{row['batch'] / row['torch_s']:,.0f}" if row["torch_s"] else ""
        ours = f"{row['clips_per_s']:,.0f}"
        cells = (found[1], dtype, row["batch"], ours, theirs, row["share_of_peak"], row["floor_share"])
        steps.append(cells + (row["gbyte"], row["compile_s"]))
    if found := re.search(r"waiting: (\{.*)", line):
        row = json.loads(found[1])
        name, size, kind = (next((w.split("=")[1] for w in words if w.startswith(f"--{key}=")), "")
                            for key in ("config", "config.batch_size", "config.dtype"))
        real = row["real"]
        cells = (name, kind or "float32", size)
        loops.append(cells + tuple(f"{real[place]['clips_per_s']:,.0f}" for place in ("host", "device"))
                     + (row["posed"]["loop"]["0.3 ms"], row["posed"]["tf_data"]["0.3 ms"]))


def table(head, rows):
    print("\n".join("| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n")


print(f"\n{json.dumps(machine)}\n")
table(["network", "type", "batch", "clips/s", "PyTorch's", "of the matmul peak", "of the floor", "GB a step",
       "s to compile"], steps)
table(["network", "type", "batch", "clips/s, copied", "clips/s, on the device", "idle at 0.3 ms", "by tf.data"], loops)
TABLE

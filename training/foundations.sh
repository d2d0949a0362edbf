#!/usr/bin/env bash
# First GPU call: VAE and tiny AE on one GPU, CLIP beside it (on a second GPU where there is one).
#   bash training/foundations.sh DATA RUN SECONDS
set -euo pipefail
data=$1 run=$2 seconds=${3:-400}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../src:$here:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
model=$here/../packages/packshot-mini/src/packshot_mini/model
second=$(( $(nvidia-smi -L | wc -l) > 1 ? 1 : 0 ))
mkdir -p "$run"
CUDA_VISIBLE_DEVICES=$second python3 "$here/train_clip.py" --data "$data" --out "$run" \
    --model "$model" --seconds $((seconds * 7 / 10)) > "$run/clip.log" 2>&1 &
clip=$!
CUDA_VISIBLE_DEVICES=0 python3 "$here/train_autoencoder.py" --data "$data" --out "$run" \
    --seconds $((seconds - 75)) --tiny-seconds 75 2>&1 | tee "$run/autoencoder.log"
wait $clip || true
tail -n 12 "$run/clip.log"

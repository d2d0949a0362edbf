#!/usr/bin/env bash
# One GPU call that goes on from the shipped weights: the UNet on the last GPU, the image encoder on
# the first, then both into the model folder and the gates on generated pictures.
#   bash training/continue.sh DATA RUN UNET_SECONDS CLIP_SECONDS
set -euo pipefail
data=$1 run=$2 unet_seconds=$3 clip_seconds=$4
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../src:$here:$here/data:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=4 TOKENIZERS_PARALLELISM=false
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/inductor}
model=$here/../packages/packshot-mini/src/packshot_mini/model
last=$(( $(nvidia-smi -L | wc -l) - 1 ))
mkdir -p "$run"
for part in unet vae tiny_vae text_encoder text_encoder_2 image_encoder; do
    cp -r "$model/$part" "$run/"
done
rm -f "$run/compiled" "$run/unet-done"
unet=("$here/train_unet.py" --data "$data" --folder "$run" --model "$model" --batch 512)
CUDA_VISIBLE_DEVICES=0 python3 "${unet[@]}" --warm > "$run/compile.log" 2>&1 &
{
    CUDA_VISIBLE_DEVICES=$last python3 "${unet[@]}" --part 0.6 1 --seconds "$unet_seconds" \
        --pictures 131072 --dataset-seconds 70 > "$run/unet.log" 2>&1 || true
    touch "$run/unet-done"
} &
CUDA_VISIBLE_DEVICES=0 python3 "$here/polish_clip.py" --data "$data" --run "$run" \
    --model "$model" --seconds "$clip_seconds" --wait-for "$run/unet-done" 2>&1 | tee "$run/clip.log"
wait
tail -n 5 "$run/unet.log" "$run/compile.log"
python3 "$here/export.py" --run "$run" --model "$model"
CUDA_VISIBLE_DEVICES=0 timeout 120 python3 "$here/evaluate.py" --model "$model" \
    --out "$run/evaluation" --prompts 208 --guidance 3 2>&1 | tee "$run/evaluation.log"

#!/usr/bin/env bash
# The UNet, in as many GPU calls as it takes; each does a share of the whole and leaves weights.
#   bash training/unet.sh DATA RUN FROM TO SECONDS [RESULTS]
# e.g. `… 0 0.45 540`, then `… 0.45 1 540`. Compiling, the image encoder's and the tiny AE's last
# training run beside the composing of pictures, which leaves the GPUs idle.
set -euo pipefail
data=$1 run=$2 from=$3 to=$4 seconds=$5 results=${6:-$2/results}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../src:$here:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/inductor} TOKENIZERS_PARALLELISM=false
model=$here/../packages/packshot-mini/src/packshot_mini/model
gpus=$(nvidia-smi -L | wc -l)
second=$(( gpus > 1 ? 1 : 0 ))
unet=("$here/train_unet.py" --data "$data" --folder "$run" --model "$model" --batch 256)
rm -f "$run/compiled"
mkdir -p "$results"
CUDA_VISIBLE_DEVICES=$second python3 "${unet[@]}" --warm > "$run/compile.log" 2>&1 &
CUDA_VISIBLE_DEVICES=$second python3 "$here/train_clip.py" --data "$data" --out "$run" \
    --model "$model" --frozen-text --seconds 150 --pool 49152 > "$run/clip.log" 2>&1 &
CUDA_VISIBLE_DEVICES=0 python3 "$here/train_autoencoder.py" --data "$data" --out "$run" \
    --seconds 0 --tiny-seconds 50 --pool 8192 > "$run/tiny.log" 2>&1 &
python3 -m torch.distributed.run --nproc_per_node "$gpus" "${unet[@]}" \
    --part "$from" "$to" --seconds "$seconds" --pictures 81920 --dataset-seconds 70 2>&1 | grep -v Warning
cp -r "$run"/unet "$run"/text_encoder "$results"
wait
tail -n 4 "$run/compile.log" "$run/clip.log" "$run/tiny.log"

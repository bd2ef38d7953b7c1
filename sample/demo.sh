#!/usr/bin/env bash
# The whole main job on the sample data in this folder: text → vocabulary → blocks → encoder → question answering.
# usage: sample/demo.sh [OUTPUT]   (default: demo-run; what is there is replaced)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo-run}
minutes=${DEMO_MINUTES:-2.5}
spanbert=${SPANBERT:-.venv/bin/spanbert}
began=$SECONDS
step() { printf '\n\033[1m── %s\033[0m\n' "$*"; }
run() { printf '\033[2m$ spanbert'; printf ' %q' "$@"; printf '\033[0m\n'; "$spanbert" "$@"; }
rm -rf "$out" && mkdir -p "$out"

step "1. A vocabulary from the corpus"
run tokenizer train sample/wikipedia.txt.xz --vocab-size 8000 --output "$out/tokenizer"

step "2. The corpus as blocks of at most 128 tokens"
run prepare sample/wikipedia.txt.xz --tokenizer "$out/tokenizer" --block-length 128 --validation-share 0.03 --output "$out/blocks"

step "3. What span masking does to a text"
run masks "The canal was opened in November 1869 after ten years of work, and ships no longer had to sail around Africa." \
  --tokenizer "$out/tokenizer"

step "4. Pretraining from scratch for $minutes minutes, measured against the unigram baseline"
run pretrain "$out/blocks" --output "$out/pretrain" --size mini --minutes "$minutes" --batch-size 8 --micro-batch-size 8 \
  --lr 1e-3 --warmup 0.1 --beta2 0.98 --weight-decay 0.01 --dropout 0 --attention-dropout 0 \
  --eval-every 100 --eval-sequences 74 --save-every 200

step "5. Filling a span (a model this young knows frequent words and little else)"
run fill "$out/pretrain/model" "The city lies on the [SPAN:2] of the river ." --top-k 3

step "6. Fine-tuning on 4,005 questions, scored on 504 questions it has not seen"
run finetune qa --init "$out/pretrain/model" --train sample/squad-train.json.gz --dev sample/squad-dev.json.gz \
  --epochs 1 --lr 3e-4 --dropout 0 --output "$out/qa"

step "7. The same score from the saved model, with official metrics and prediction files"
run evaluate qa "$out/qa" sample/squad-dev.json.gz --output "$out/evaluation"

step "8. Asking about sample/text.txt, or your own text in its place (minutes of training: most answers will be wrong)"
run ask "$out/qa" --context sample/text.txt \
  "When was the canal opened?" "Who founded the Suez Canal Company?" "Which ship blocked the canal in 2021?"

step "9. Out to transformers' layout in bf16, and back in"
run export "$out/qa" "$out/exported" --dtype bf16
run import "$out/exported" "$out/imported"

printf '\neverything is in %s; it took %d min %02d s\n' "$out" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60))

#!/usr/bin/env bash
# First what the bundled models can do, then the whole main job on the sample data in this folder: text → vocabulary →
# blocks → encoder → question answering.
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

printf '\033[1mWith the bundled models\033[0m\n'

step "1. What span masking does to a text"
run masks "The canal was opened in November 1869 after ten years of work, and ships no longer had to sail around Africa."

step "2. Filling a span: the MLM head looks at the whole text, the SBO head at the span's two neighbours, and both together"
run fill "The city lies on the [SPAN:2] of the river." --head mlm --top-k 3
run fill "The city lies on the [SPAN:2] of the river." --head sbo --top-k 3
run fill "The city lies on the [SPAN:2] of the river." --head both --top-k 3

step "3. Asking about sample/text.txt, or your own text in its place (the answers come as they are, right or wrong)"
run ask --context sample/text.txt --n-best 2 \
  "When was the canal opened?" "Who founded the Suez Canal Company?" "Which ship blocked the canal in 2021?" \
  "How many ships were trapped in the Great Bitter Lake?" "Why does the canal have no locks?"

step "4. The official score on 504 questions that it was not trained on"
run evaluate qa sample/squad-dev.json.gz --output "$out/bundled"

printf '\n\033[1mThe same from scratch, from text to answers, in minutes\033[0m\n'

step "5. A vocabulary from the corpus"
run tokenizer train sample/wikipedia.txt.xz --vocab-size 8000 --output "$out/tokenizer"

step "6. The corpus as blocks of at most 128 tokens"
run prepare sample/wikipedia.txt.xz --tokenizer "$out/tokenizer" --block-length 128 --validation-share 0.03 --output "$out/blocks"

step "7. A new model, which knows from the start what counting tells about the corpus"
run init "$out/blocks" --output "$out/start" --size mini

step "8. Pretraining it for $minutes minutes: the validation loss falls below the unigram baseline"
run pretrain "$out/blocks" --init-from "$out/start" --output "$out/pretrain" --minutes "$minutes" --batch-size 8 --micro-batch-size 8 \
  --lr 1e-3 --warmup 0.1 --beta2 0.98 --weight-decay 0.01 --dropout 0 --attention-dropout 0 \
  --eval-every 100 --eval-sequences 74 --save-every 200

step "9. Fine-tuning that encoder on 2,000 questions, scored on the same 504 (minutes of training: few will be right)"
run finetune qa --init "$out/pretrain/model" --train sample/squad-train.json.gz --dev sample/squad-dev.json.gz \
  --max-train-questions 2000 --epochs 1 --lr 3e-4 --dropout 0 --output "$out/qa"

step "10. The same score from the saved model, with official metrics and prediction files"
run evaluate qa "$out/qa" sample/squad-dev.json.gz --output "$out/evaluation"

step "11. Out to transformers' layout in bf16, and back in"
run export "$out/qa" "$out/exported" --dtype bf16
run import "$out/exported" "$out/imported"

printf '\neverything is in %s; it took %d min %02d s\n' "$out" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60))

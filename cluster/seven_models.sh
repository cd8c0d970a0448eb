#!/usr/bin/env bash
# The paper's ensemble: seven models with the same initial weights (the recipe's) that see the images
# in another order and sample them otherwise; then all of them together on 144 crops of each validation image.
#
#   cluster/seven_models.sh DATA RUNS [OPTIONS of distbelief train ilsvrc14]
#
# DATA is a folder with train/ and val/, RUNS the folder for RUNS/model-1 to RUNS/model-7. Started
# again after an interruption it leaves finished runs as they are and goes on with the others, with
# the options that these were begun with.
set -euo pipefail

if (($# < 2)); then
  echo "usage: $0 DATA RUNS [OPTIONS of distbelief train ilsvrc14]" >&2
  exit 2
fi
data=$1 runs=$2
shift 2

models=()
for k in {1..7}; do
  run=$runs/model-$k
  models+=("$run")
  if grep -qs '"status": "finished"' "$run/summary.json"; then
    echo "$run is finished"
  elif [[ -e $run/config.json ]]; then
    distbelief train --resume "$run"
  else
    distbelief train ilsvrc14 --data "$data" --seed "$k" --run-dir "$run" "$@"
  fi
done
distbelief evaluate "${models[@]}" --data "$data" --crops 144

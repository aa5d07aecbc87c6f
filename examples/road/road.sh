#!/usr/bin/env bash
# From a model to a better one, by commands alone, each stage on the adapters that the one before left:
#
#     bash examples/road/road.sh [OVERRIDE ...]      # in folders of road/, or of $ROAD
#
# Overrides go to every command. A stage that is complete is not run again; one that was
# interrupted goes on; one that was asked for otherwise, or made from another model than is there
# now, is refused.
set -eo pipefail  # no -u: bash 3 takes an empty array for an unset one
road=${ROAD:-road}
more=("$@")
stages=()
judge="{learned: {reward: model, path: $road/reward/model}, sentiment: sentiment}"

models_in() { # WORDS: checksums of the models of earlier stages that these name
    local earlier
    for earlier in "${stages[@]}"; do
        if [[ $1 == *"$road/$earlier/model"* ]] && [ -d "$road/$earlier/model" ]; then
            cksum "$road/$earlier/model"/*.safetensors
        fi
    done
}

stage() { # NAME ARGUMENT...: a run in a folder of the road, unless it is there
    local name=$1 on=() && shift
    local asked="$* ${more[*]}" noted="$road/$name.asked" from="$road/$name.from" models
    models=$(models_in "$*")
    stages+=("$name")
    local last="$road/$name/checkpoints/last.ckpt"
    local end="$road/$name/result.json" # a run writes it last
    if [ -e "$end" ] || [ -e "$last" ]; then
        if [ -e "$noted" ] && [ "$(<"$noted")" != "$asked" ]; then
            echo "$road/$name was asked for by other words ($noted): $(<"$noted")" >&2
            echo "Say the same, or take another folder: ROAD=again bash $0 ..." >&2
            exit 1
        fi
        if [ -e "$from" ] && [ "$(<"$from")" != "$models" ]; then
            echo "$road/$name was made from other models than are there now:" >&2
            diff "$from" - <<< "$models" >&2 || true
            echo "Delete it, and it is made anew: rm -r $road/$name" >&2
            exit 1
        fi
        if [ -e "$end" ]; then return; fi
        on=(ckpt_path="$road/$name")
    fi
    mkdir -p "$(dirname "$noted")" && echo "$asked" > "$noted"
    if [ -n "$models" ]; then echo "$models" > "$from"; fi
    echo "== $name"
    python train.py "$@" "${on[@]}" "${more[@]}" hydra.run.dir="$road/$name"
}

# 1. What to write: the chosen side of the carried pairs (238 texts), with LoRA.
stage sft algo=sft model.lora.r=16 algo.learning_rate=3e-4

# 2. What is good: a reward model from the pairs, that begins as the adapter of 1.
sft=(model=hf model.name="$road/sft/model")
stage reward algo=reward "${sft[@]}" algo.learning_rate=2e-4

# 3. Three ways to better answers, each from the adapter of 1, which is the reference too. PPO and GRPO
#    ask the reward model; the lexicon by which the pairs were once labelled only looks on (weight 0).
reward=(reward=weighted "reward.components=$judge" "reward.weights={learned: 1, sentiment: 0}")
stage ppo algo=ppo "${sft[@]}" "${reward[@]}" algo.learning_rate=3e-4
stage grpo algo=grpo env=text "${sft[@]}" "${reward[@]}" algo.learning_rate=3e-4 algo.beta=0.02 \
    algo.batch_size=128 algo.mini_batch_size=64 algo.num_iterations=12 algo.max_new_tokens=24 \
    data.eval_generations=1 data.eval_batch_size=96
stage dpo algo=dpo "${sft[@]}" algo.learning_rate=1e-4 \
    'algo.loss_type=[sigmoid,sft]' 'algo.loss_weights=[1.0,1.0]'

# 4. All of them judged alike: answers to 96 openings that no stage has seen.
stage judged/start task=evaluate algo=ppo "${reward[@]}"
for name in sft ppo grpo dpo; do
    stage "judged/$name" task=evaluate algo=ppo model=hf model.name="$road/$name/model" "${reward[@]}"
done
python examples/road/table.py "$road"

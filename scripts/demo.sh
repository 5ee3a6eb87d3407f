#!/usr/bin/env bash
# From nothing to a report: sets up the environment, draws synthetic smears, trains the small network on the CPU, tests it.
#
#   bash scripts/demo.sh            goes on from where an earlier run was broken off
#   bash scripts/demo.sh --fresh    starts over; removes only what an earlier demo made
set -euo pipefail

# ---- training flags of the demo: change them here, then run with --fresh ---------------------------------------------
TRAINING=(--preset small --gpu_ids -1 --display_id 0 --niter 14 --niter_decay 10 --batchSize 8 --lr 0.001 --seed 1)
# -----------------------------------------------------------------------------------------------------------------------

NAME=DEMO
DATA=datasets/synthetic-demo
CHECKPOINTS="checkpoints/$NAME"
RESULTS="results/$NAME"
PAGE="$RESULTS/test_latest/index.html"
# Marks stand beside the data, which must hold nothing but smears, and inside the other two folders.
DATA_MARK=datasets/.synthetic-demo.made-by-demo
MARK=.made-by-demo

# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() {
    sed -n '2,5p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
}

PARTS=()
PART=""

# part NAME COMMAND...: runs one part of the demo and notes how long it took.
part() {
    local started="$SECONDS"
    PART="$1"
    shift
    printf '\n== %s\n' "$PART"
    "$@"
    PARTS+=("$(printf '%-12s %5d s' "$PART" "$((SECONDS - started))")")
    PART=""
}

on_exit() {
    local status=$?
    if [ "$status" -ne 0 ] && [ -n "$PART" ]; then
        printf '\nthe demo stopped in its part "%s"; what was finished is kept, and the next run goes on from there\n' "$PART" >&2
    fi
}

# ours FOLDER MARK: whether an earlier demo made the folder; one that is not there or is empty may be taken.
ours() {
    [ -e "$2" ] || [ ! -d "$1" ] || [ -z "$(ls -A "$1")" ]
}

refuse() {
    die "$1 is there and was not made by this demo" "rename or move it, then run the demo again; the demo removes nothing of yours"
}

# take_over: makes sure that the folders of the run are the demo's own, and that no run on other data took its place.
take_over() {
    local folder options="$CHECKPOINTS/options.json"
    for folder in "$CHECKPOINTS" "$RESULTS"; do
        ours "$folder" "$folder/$MARK" || refuse "$DCFNET_HOME/$folder"
    done
    [ ! -e "$options" ] || grep -qF "$DATA" "$options" || refuse "$DCFNET_HOME/$CHECKPOINTS"
}

start_over() {
    take_over
    ours "$DATA" "$DATA_MARK" || refuse "$DCFNET_HOME/$DATA"
    rm -rf "$DATA" "$DATA_MARK" "$CHECKPOINTS" "$RESULTS"
}

synthesize() {
    if [ -d "$DATA" ] && [ "$(cat "$DATA_MARK" 2>/dev/null)" != started ]; then
        printf '%s: there already\n' "$DATA"
        return
    fi
    rm -rf "$DATA" # broken off half-way by an earlier run of this demo, or not there
    mkdir -p "$(dirname "$DATA")"
    echo started >"$DATA_MARK"
    "$DCFNET_PYTHON" 3TDCFNet_data.py synthesize "$DATA" --count 160 --seed 7
    echo complete >"$DATA_MARK"
}

train() {
    local again=()
    if [ -e "$CHECKPOINTS/$MARK" ] && [ "$(cat "$CHECKPOINTS/$MARK")" != "${TRAINING[*]}" ]; then
        die "$CHECKPOINTS was trained with other flags ($(cat "$CHECKPOINTS/$MARK"))" "bash scripts/demo.sh --fresh"
    fi
    if [ -e "$CHECKPOINTS/finished.json" ]; then
        printf '%s: trained already\n' "$CHECKPOINTS"
        return
    fi
    if [ -e "$CHECKPOINTS/latest_state.safetensors" ]; then
        again=(--continue_train)
    else
        rm -rf "$CHECKPOINTS" # broken off before its first checkpoint, or not there
    fi
    mkdir -p "$CHECKPOINTS"
    printf '%s\n' "${TRAINING[*]}" >"$CHECKPOINTS/$MARK"
    "$DCFNET_PYTHON" 3TDCFNet_train.py --dataroot "$DATA" --name "$NAME" "${TRAINING[@]}" ${again[@]+"${again[@]}"}
}

evaluate() {
    if [ "$PAGE" -nt "$CHECKPOINTS/latest_net_3TDCFNet.safetensors" ]; then
        printf '%s: tested already\n' "$RESULTS"
        return
    fi
    mkdir -p "$RESULTS"
    touch "$RESULTS/$MARK"
    "$DCFNET_PYTHON" 3TDCFNet_test.py --dataroot "$DATA" --name "$NAME" --gpu_ids -1 --display_id 0
    [ -e "$PAGE" ] || die "$PAGE was not written" "see above"
}

main() {
    local fresh=""
    case "${1:-}" in
        "") ;;
        --fresh) fresh=yes ;;
        -h | --help) usage && exit 0 ;;
        *) die "unknown option $1" "bash scripts/demo.sh [--fresh]" ;;
    esac
    trap on_exit EXIT
    cd "$DCFNET_HOME"
    take_over
    if [ -n "$fresh" ]; then start_over; fi
    part environment prepare_environment requirements.txt
    part data synthesize
    part training train
    part test evaluate
    printf '\n== how long it took\n'
    printf '%s\n' "${PARTS[@]}"
    printf '%-12s %5d s\n' total "$SECONDS"
    printf '\nThe report (of synthetic smears):\n%s\n' "$DCFNET_HOME/$PAGE"
}

main "$@"

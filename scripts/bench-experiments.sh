#!/bin/sh
# The experiments of docs/results/2026-11-21-policy-experiments.md, all of them or those named:
#   scripts/bench-experiments.sh [sweep mixed stress traces warmup stale stale_sockets surface valve
#     valve_sockets]
# TRACES is a folder with mtrag.jsonl.zst, mtrag-keep.jsonl.zst, sharegpt-shape.jsonl.zst and
# mooncake-conversation.jsonl.zst; what needs one that is not there is skipped. SEEDS, OUT and BENCH
# (the program) can be set. All of it takes four hours, one run after the other. Where processors are
# free, stages may run side by side, each in a network namespace (`unshare -n`): ports could collide.
set -eu

BENCH=${BENCH:-target/release/warmroute-bench}
ROUTER=${ROUTER:-$(dirname "$BENCH")/warmroute}
OUT=${OUT:-target/experiments}
SEEDS=${SEEDS:-3}
TRACES=${TRACES:-}

EIGHT=least-loaded,round-robin,session-affinity,prefix-affinity,power-of-two,sticky-least-loaded,weighted,prefix-aware

replay() { # replay NAME OPTION...
  name=$1
  shift
  mkdir -p "$OUT/$name"
  echo "== $name" >&2
  "$BENCH" replay --router "$ROUTER" --seeds "$SEEDS" --out "$OUT/$name" "$@" \
    >"$OUT/$name/log.txt" 2>&1 || { tail -n 5 "$OUT/$name/log.txt" >&2; return 1; }
}

simulated() { # simulated NAME OPTION...
  name=$1
  shift
  echo "== $name" >&2
  mkdir -p "$OUT"
  "$BENCH" simulate --out "$OUT/$name.json" "$@" >"$OUT/$name.txt" 2>&1
}

traced() { # traced FILE: is it there?
  [ -n "$TRACES" ] && [ -f "$TRACES/$1" ] && return
  echo "SKIP: no $1 in TRACES" >&2
  return 1
}

# (a) 4 to 24 chats at once, closed loop, answers of 64 tokens on average.
sweep() {
  for sessions in ${SWEEP:-"4,8" "12,16,20,24"}; do
    replay "sweep-$sessions" --workload chat --conversations 48 --turns 8 --system-bytes 6144 \
      --sweep "sessions=$sessions" --time-scale 0.25 --answer-scale 1.7778 \
      --kv-blocks 900 --prefill-tokens-per-s 2500 --decode-step-ms 4 \
      --policies round-robin,random,least-loaded,prefix-aware
  done
}

# (g) Five patterns, open loop.
mixed() {
  for workload in ${WORKLOADS:-chat tools rag hotspot single-turn}; do
    case $workload in
      chat) size="--conversations 80 --turns 6 --rate 28" ;;
      tools) size="--conversations 54 --turns 8 --rate 15" ;;
      rag) size="--conversations 420 --rate 18" ;;
      hotspot) size="--conversations 360 --rate 14" ;;
      single-turn) size="--conversations 330 --rate 11" ;;
    esac
    # shellcheck disable=SC2086
    replay "mixed-$workload" --workload "$workload" $size --kv-blocks 1200 \
      --prefill-tokens-per-s 2500 --policies "$EIGHT"
  done
}

# (g) One worker at a third of the others' speed, and 1.1 times what can be served: single-turn by what
# prompts cost, tools by what the default policy computes of them. `busy`: chats at a load at which
# only those with affinity can serve them.
stress() {
  for cell in ${CELLS:-slow busy overload-single overload-tools}; do
    policies=$EIGHT
    case $cell in
      busy)
        cell_is="--workload chat --conversations 80 --turns 6 --rate 28 --prefill-tokens-per-s 1200"
        policies=session-affinity,prefix-aware
        ;;
      slow) cell_is="--workload chat --conversations 70 --turns 6 --rate 22 --slow-worker 0.33 --prefill-tokens-per-s 2500" ;;
      overload-single) cell_is="--workload single-turn --conversations 360 --rate 14.3 --prefill-tokens-per-s 2500" ;;
      overload-tools) cell_is="--workload tools --conversations 54 --turns 8 --rate 32 --prefill-tokens-per-s 2500" ;;
    esac
    # shellcheck disable=SC2086
    replay "stress-$cell" $cell_is --kv-blocks 1200 --policies "$policies"
  done
}

# (c) Recorded traces, open loop, faster than they were; tokens are 4 bytes. A sample is half of the
# sessions, drawn by the seed; without one the seeds differ in nothing but the router's own draws.
traces() {
  for cell in ${FILES:-sharegpt-shape sharegpt-shape-busy mtrag mtrag-busy mtrag-keep}; do
    trace=${cell%-busy}
    traced "$trace.jsonl.zst" || continue
    case $cell in
      sharegpt-shape) how="--sample 0.5 --limit 400 --time-scale 0.2 --answer-scale 0.2 --kv-blocks 2000 --prefill-tokens-per-s 2800" ;;
      sharegpt-shape-busy) how="--limit 800 --time-scale 0.4 --answer-scale 0.2 --kv-blocks 2000 --prefill-tokens-per-s 1500" ;;
      mtrag) how="--sample 0.5 --limit 300 --time-scale 0.08 --answer-scale 0.3 --kv-blocks 4000 --prefill-tokens-per-s 10000" ;;
      mtrag-busy) how="--limit 300 --time-scale 0.12 --answer-scale 0.3 --kv-blocks 4000 --prefill-tokens-per-s 10000" ;;
      mtrag-keep) how="--limit 240 --time-scale 0.22 --answer-scale 0.3 --kv-blocks 4000 --prefill-tokens-per-s 10000" ;;
    esac
    # shellcheck disable=SC2086
    replay "trace-$cell" --trace "$TRACES/$trace.jsonl.zst" $how \
      --policies round-robin,least-loaded,session-affinity,prefix-aware
  done
}

# (b) From cold caches on.
warmup() {
  replay warmup --workload chat --sessions 24 --conversations 48 --turns 16 --system-bytes 512 \
    --time-scale 0.25 --kv-blocks 2000 --prefill-tokens-per-s 2500 --rows \
    --policies round-robin,least-loaded,prefix-aware
}

# Decodes fill the memory of batching engines where prompts are as short as ShareGPT's.
load_of() {
  case $1 in sharegpt-shape) echo 0.3 ;; *) echo 0.9 ;; esac
}

# (d) How old what is known may be: virtual time, and real sockets.
stale() {
  for trace in sharegpt-shape mtrag-keep mooncake-conversation; do
    traced "$trace.jsonl.zst" || continue
    for late in exact late:0.1 late:1 late:5 late:30 presumed; do
      simulated "stale-$trace-$late" --trace "$TRACES/$trace.jsonl.zst" --limit 8000 \
        --engine fifo,batching --load "$(load_of "$trace")" --cache 0.5x --knowledge "$late" \
        --policies prefix-aware,least-loaded,session-affinity
    done
  done
}
stale_sockets() {
  for interval in ${INTERVALS:-10 100 1000 5000 30000}; do
    replay "stale-$interval" --workload tools --conversations 70 --turns 8 --rate 15 \
      --kv-blocks 1200 --prefill-tokens-per-s 2500 --report-interval-ms "$interval" \
      --policies prefix-aware
  done
}

# (e) Affinity against queueing, in virtual time.
surface() {
  for trace in sharegpt-shape mtrag-keep mooncake-conversation; do
    traced "$trace.jsonl.zst" || continue
    simulated "surface-$trace" --trace "$TRACES/$trace.jsonl.zst" --limit 8000 --engine fifo \
      --cache 0.25x,1x,4x --load 0.5,0.7,0.9,1.1 --knowledge late:0.1 \
      --policies round-robin,least-loaded,prefix-affinity,session-affinity,sticky-least-loaded,prefix-aware
  done
}

# (f) Without the valve, with fixed ones, with the price; and the bound on requests in flight.
valve() {
  for trace in sharegpt-shape mtrag-keep mooncake-conversation; do
    traced "$trace.jsonl.zst" || continue
    simulated "valve-$trace" --trace "$TRACES/$trace.jsonl.zst" --limit 8000 --engine fifo,batching \
      --load "$(load_of "$trace")" --policies prefix,prefix-valve,cost,prefix-aware,least-loaded
  done
}
valve_sockets() {
  for bound in ${BOUNDS:-auto 4 16 64 1024}; do
    replay "valve-$bound" --workload hotspot --conversations 360 --rate 14 \
      --kv-blocks 1200 --prefill-tokens-per-s 2500 --policies prefix-aware \
      --router-yaml "limits: {inflight_max: $bound}"
  done
}

for stage in ${*:-sweep mixed stress traces warmup stale stale_sockets surface valve valve_sockets}; do
  "$stage"
done

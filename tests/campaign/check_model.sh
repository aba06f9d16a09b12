#!/usr/bin/env bash
# Checks docs/model/runner.pml exhaustively: safety, liveness, and that each of its guards is needed, by taking them out
# one at a time and showing, shortened, what then goes wrong. Takes a minute on two cores and 1 GB. Exit code 75: spin
# or a C compiler is missing; the last line names it.
set -euo pipefail

model=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/docs/model/runner.pml
for tool in spin cc; do
    command -v "$tool" >/dev/null || { echo "no $tool on the PATH (Debian: apt-get install spin gcc)"; exit 75; }
done
work=$(mktemp -d)
trap 'kill "${safety_pid:-}" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
failed=0

# search NAME MODEL_MACROS VERIFIER_MACROS ARGUMENTS: an exhaustive search in its own directory, its report in `log`.
search() {
    mkdir "$work/$1"
    cd "$work/$1"
    # Words on purpose: each of the three is a list of options.
    # shellcheck disable=SC2086
    {
        spin $2 -a "$model" >spin.log 2>&1 && cc -w $3 -o pan pan.c >cc.log 2>&1 || { cat spin.log cc.log; return 1; }
        ulimit -v $((2 * 1024 * 1024))
        exec timeout 600 ./pan $4 >log 2>&1
    }
}

# figures NAME: states, depth, seconds and memory of a search.
figures() {
    awk -v name="$1" '
        /depth reached/ { sub(",", "", $6); depth = $6 }
        /states, stored/ { states = $1 }
        /total actual memory/ { memory = $1 }
        /elapsed time/ { seconds = $4 }
        END { printf "%-19s %8d states, depth %5d, %6.1f s, %4d MB", name, states, depth, seconds, memory }
    ' "$work/$1/log"
}

# counterexample NAME MODEL_MACROS: the last steps of the one that was found, and what they break.
counterexample() {
    local line
    cd "$work/$1"
    # shellcheck disable=SC2086
    spin $2 -T -B -t -k runner.pml.trail "$model" >trail 2>&1 || true
    sed -i 's/.*START OF CYCLE.*/(and from here on round and round)/; s/^/      /' trail
    grep -Ev '^ *(spin:|ltl |Never claim|[0-9]* processes created|#|$)' trail >steps
    grep -B 7 -A 5 'round and round' steps || tail -n 12 steps
    line=$(sed -n 's/^ *spin: .*:\([0-9]*\), Error: assertion violated.*/\1/p' trail)
    # A trail without a failed assertion is one that never ends.
    sed -n "${line:-/^ltl/} s/^ */      breaks: /p" "$model"
    cd "$OLDPWD"
}

# holds NAME MODEL_MACROS: whether the search was complete and found nothing.
holds() {
    figures "$1"
    if [[ -e $work/$1/runner.pml.trail ]]; then
        echo ": FAILED"
        counterexample "$1" "$2"
        failed=1
    elif ! grep -q 'errors: 0$' "$work/$1/log" || grep -Eq 'too small|out of memory|not completed' "$work/$1/log"; then
        echo ": FAILED, it did not come to an end"
        tail -n 5 "$work/$1"/*log
        failed=1
    else
        echo ": holds"
    fi
}

# breaks GUARD MODEL_MACROS: whether the search without the guard has found a counterexample.
breaks() {
    figures "$1"
    if [[ -e $work/$1/runner.pml.trail ]]; then
        echo ": counterexample"
        counterexample "$1" "$2"
    else
        echo ": FAILED, no counterexample was found"
        failed=1
    fi
}

# The large search has one core, everything else the other.
safety_macros="-DFRAMES=3 -DSPARE=255 -DMAX_EPOCHS=255"
(search safety "$safety_macros" "-O2 -DSAFETY -DNOFAIR" "-w24 -m200000") &
safety_pid=$!

echo "Without one guard:"
guards=$(sed -n '/mtype = { NOTHING/,/}/p' "$model" | grep -Eo '[A-Z_]{4,}' | grep -v NOTHING)
for guard in $guards; do
    case $guard in
        REAPER | SPAWN_LEASE_END | REPORT_OF_UNCLAIMED | EPOCH_COUNT | PROGRESS_IN_EPOCH_COUNT)
            macros="-DFRAMES=1 -DSPARE=1 -DMAX_EPOCHS=3 -DLIVENESS -DWITHOUT=$guard"
            (search "$guard" "$macros" "-DNFAIR=3" "-a -f -w20 -m20000") || true
            ;;
        *)
            # Breadth first, so that the counterexample is the shortest there is.
            macros="-DFRAMES=1 -DSPARE=255 -DMAX_EPOCHS=255 -DWITHOUT=$guard"
            (search "$guard" "$macros" "-DSAFETY -DBFS" "-w22") || true
            ;;
    esac
    breaks "$guard" "$macros"
done

echo "With every guard:"
macros="-DFRAMES=2 -DSPARE=1 -DMAX_EPOCHS=3 -DLIVENESS"
(search liveness "$macros" "-O2 -DNFAIR=3" "-a -f -w20 -m20000") || true
holds liveness "$macros"
wait "$safety_pid" || true
safety_pid=
holds safety "$safety_macros"
# A statement that is never reached is not checked. The reaper's are exempt: it asks for what holds already, so nothing refuses it.
unreached=$(awk '/^unreached in/ { reaper = /reaper/ } /, state [0-9]+,/ && !/-end-/ && !reaper' "$work/safety/log")
if [[ -n $unreached || ! -s $work/safety/log ]]; then
    printf 'FAILED: steps that are never reached:\n%s\n' "$unreached"
    failed=1
else
    echo "every step of the model is reached"
fi

echo "$(wc -w <<<"$guards") guards taken out, $SECONDS s"
exit $failed

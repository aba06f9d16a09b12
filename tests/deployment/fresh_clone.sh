#!/bin/sh
# Proves that a stranger's first minute works: clones the checkout's HEAD into an empty directory and runs make there,
# with an empty HOME and no inherited environment but what a package index may need.
#
#   sh tests/deployment/fresh_clone.sh [run|test] [CHECKOUT]
#
# run    `make run` serves scenario 1; the second `make run` finds it complete; nothing is left running
# test   `make test`; TRIO_RUNNER_FRESH_TESTS holds pytest arguments for fewer than all tests
set -eu

verb=${1:-run}
checkout=$(cd "${2:-$(dirname "$0")/../..}" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/trio-runner-fresh.XXXXXX")

fail() {
    echo "fresh clone: $*" >&2
    exit 1
}

# Prints the pids of processes that have the clone in their arguments, environment or working directory. To be called
# as $(cd / && left_over): its own subshell then has it nowhere.
left_over() {
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [ "$pid" = $$ ] && continue
        if { cat "$process/cmdline" "$process/environ"; readlink "$process/cwd"; } 2>/dev/null |
            grep --quiet --fixed-strings --text "$work"; then
            printf '%s ' "$pid"
        fi
    done
}

clean_up() {
    status=$?
    trap - EXIT
    for pid in $(cd / && left_over); do
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir "$work/home"
set -- "PATH=$PATH" "HOME=$work/home"
for name in $(env | sed -n 's/^\(PIP_[A-Z_]*\|UV_[A-Z_]*\|SSL_CERT_FILE\|[A-Z_]*_CA_BUNDLE\|[a-z]*_proxy\|[A-Z]*_PROXY\)=.*/\1/p'); do
    eval "set -- \"\$@\" \"$name=\$$name\""
done

git clone --quiet "$checkout" "$work/trio_runner"
cd "$work/trio_runner"

stay_clean() {
    changed=$(git status --porcelain)
    [ -z "$changed" ] || fail "make $verb left files that .gitignore does not name: $changed"
    tries=0
    while pids=$(cd / && left_over) && [ -n "$pids" ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt 50 ]; then
            # shellcheck disable=SC2086  # a list of numbers
            ps -o pid,ppid,args -p "$(echo $pids | tr ' ' ',')" >&2 || true
            fail "processes left over: $pids"
        fi
        sleep 0.2
    done
}

case $verb in
    run)
        env -i "$@" make run >"$work/first.log" 2>&1 </dev/null || { cat "$work/first.log"; fail "make run failed"; }
        cat "$work/first.log"
        grep --quiet --ignore-case 'scenario 1.*complete' "$work/first.log" || fail "make run printed no summary of scenario 1"
        env -i "$@" make run >"$work/second.log" 2>&1 </dev/null || { cat "$work/second.log"; fail "the second make run failed"; }
        cat "$work/second.log"
        grep --quiet --ignore-case 'scenario 1.*complete' "$work/second.log" ||
            fail "the second make run did not print that scenario 1 is complete"
        ! grep --quiet 'uv pip install' "$work/second.log" || fail "the second make run installed again"
        ;;
    test)
        env -i "$@" make test "PYTEST_ARGS=${TRIO_RUNNER_FRESH_TESTS:-}" </dev/null || fail "make test failed"
        ;;
    *)
        fail "run or test, not '$verb'"
        ;;
esac
stay_clean
echo "fresh clone: make $verb works"

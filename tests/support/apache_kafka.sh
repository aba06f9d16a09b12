#!/usr/bin/env bash
# Apache Kafka itself, one node on the loopback, its jars from Maven Central (pinned in tests/support/apache_kafka/pom.xml):
#
#   tests/support/apache_kafka.sh start DIRECTORY [PROPERTY=VALUE...]    then `set -a; . DIRECTORY/addresses.env`
#   tests/support/apache_kafka.sh stop DIRECTORY
#   tests/support/apache_kafka.sh jars                                   where the jars are, fetched if need be
#
# DIRECTORY is made; PYTHON names an interpreter that has the development dependencies. Further properties override those
# of tests/support/apache_kafka/prepare.py. The jars stay in ${TRIO_RUNNER_TEST_CACHE:-~/.cache/trio-runner-tests}. Exit code 75:
# java or mvn is missing, or the jars cannot be had; the last line names it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
cache=${TRIO_RUNNER_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trio-runner-tests}

start() {
    local directory jars deadline port
    jars=$(jars) || skip "$jars"
    [[ -e $1 ]] && { echo "$1 exists already" >&2; exit 64; }
    mkdir -p "$1"
    directory=$(cd "$1" && pwd)
    shift
    "$python" "$here/apache_kafka/prepare.py" "$directory" "$@"
    mapfile -t scram <"$directory/scram"
    java -cp "$jars/*" kafka.tools.StorageTool format --cluster-id dHJpby1ydW5uZXItdGVzdA \
        --config "$directory/server.properties" "${scram[@]}" >"$directory/format.log" 2>&1 || fail "$directory/format.log"
    # In a session of its own: Ctrl-C on the tests must not take the broker away from under them.
    setsid java -Xmx512m -cp "$jars/*" kafka.Kafka "$directory/server.properties" \
        </dev/null >"$directory/broker.log" 2>&1 &
    echo $! >"$directory/pid"
    deadline=$((SECONDS + 120))
    for port in $(sed -n 's/^TRIO_RUNNER_TEST_KAFKA_.*:\([0-9]*\)$/\1/p' "$directory/addresses.env"); do
        until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
            kill -0 "$(<"$directory/pid")" 2>/dev/null || fail "$directory/broker.log"
            ((SECONDS < deadline)) || { stop "$directory"; fail "$directory/broker.log"; }
            sleep 0.1
        done
    done
    cat "$directory/addresses.env"
}

# Prints the directory that the jars lie in; it is never there in part.
jars() {
    local tool jars new
    for tool in java mvn; do
        command -v "$tool" >/dev/null || skip "no $tool on the PATH (Debian: apt-get install openjdk-17-jre-headless maven)"
    done
    jars=$cache/apache-kafka-$(sha256sum <"$here/apache_kafka/pom.xml" | cut -c 1-16)
    if [[ ! -d $jars ]]; then
        mkdir -p "$cache"
        new=$(mktemp -d "$jars.XXXXXX")
        mvn -q -B -f "$here/apache_kafka/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
            -DoutputDirectory="$new" >"$new/mvn.log" 2>&1 || {
            cat "$new/mvn.log" >&2
            rm -r "$new"
            skip "mvn cannot fetch Apache Kafka's jars"
        }
        # Another one may have been quicker.
        mv -T "$new" "$jars" 2>/dev/null || rm -r "$new"
    fi
    echo "$jars"
}

# TERM, and KILL after 20 s.
stop() {
    local pid deadline=$((SECONDS + 20))
    [[ -f $1/pid ]] || return 0
    pid=$(<"$1/pid")
    if is_broker "$pid"; then
        kill -TERM "$pid" || true
        # Perhaps a test has stopped it.
        kill -CONT "$pid" || true
    fi
    while is_broker "$pid"; do
        ((SECONDS < deadline)) || kill -KILL "$pid" || true
        sleep 0.1
    done
    rm "$1/pid"
}

# Not `kill -0`: the number may be another's by now, or that of a dead one that nobody has reaped.
is_broker() {
    grep -qsF kafka.Kafka "/proc/$1/cmdline"
}

skip() {
    echo "$1"
    exit 75
}

fail() {
    cat "$1" >&2
    echo "Apache Kafka did not start" >&2
    exit 1
}

case ${1:-} in
    start) [[ $# -ge 2 ]] && { shift; start "$@"; exit; } ;;
    stop) [[ $# -eq 2 ]] && { stop "$2"; exit; } ;;
    jars) [[ $# -eq 1 ]] && { jars; exit; } ;;
esac
sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
exit 64

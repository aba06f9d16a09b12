#!/usr/bin/env bash
# A Docker engine of its own, with deploy/compose.yaml's images built, for tests/deployment/test_docker.py:
#
#   tests/deployment/docker.sh start DIRECTORY    then `set -a; . DIRECTORY/docker.env`
#   tests/deployment/docker.sh stop DIRECTORY
#
# Its processes, mounts and network are in namespaces of their own, and the bridges and firewall rules it makes with them.
# Images stay in ${TRIO_RUNNER_TEST_CACHE:-~/.cache/trio-runner-tests}/docker and are built anew where what they are built
# from has changed. No registry of images is asked: the base is Debian's python3. Exit code 75: it cannot run here; the
# last line names the cause.
set -Eeuo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TRIO_RUNNER_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trio-runner-tests}
bundle=/etc/ssl/certs/ca-certificates.crt
base=(mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates
    --customize-hook="upload $bundle $bundle" bookworm -)
patience=120

start() {
    local directory tool
    for tool in dockerd docker docker-init mmdebstrap java mvn unshare; do
        command -v "$tool" >/dev/null || skip "not installed: $tool"
    done
    docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || skip "not installed: docker-compose"
    [[ $(id -u) -eq 0 ]] || skip "a Docker engine takes root"
    [[ -e $1 ]] && { echo "$1 exists already" >&2; exit 64; }
    mkdir -p "$1" "$cache/docker"
    directory=$(cd "$1" && pwd)
    # The engine inherits the lock, so that it is held until the engine has ended.
    exec 9>"$cache/docker.lock"
    flock --timeout 600 9 || skip "another engine uses $cache/docker"
    export DOCKER_HOST=unix://$directory/docker.sock DOCKER_BUILDKIT=0
    # Building takes the machine's network, which running must not touch.
    engine "$directory" --iptables=false --bridge=none
    trap 'stop "$directory"' ERR
    images "$directory"
    trap - ERR
    end "$directory"
    engine "$directory"
    docker image prune --force --filter until=168h >/dev/null
    echo "TRIO_RUNNER_TEST_DOCKER=$DOCKER_HOST" | tee "$directory/docker.env"
}

# engine DIRECTORY [OPTION...]: starts dockerd and waits until it answers; without options it has a network of its own.
engine() {
    local directory=$1 deadline=$((SECONDS + patience)) own=()
    shift
    [[ $# -gt 0 ]] || own=(--net)
    # The first process in there reaps what containers leave; when it ends, everything has ended.
    setsid unshare --fork --kill-child --pid --mount --mount-proc "${own[@]}" docker-init -g -- dockerd \
        --host "$DOCKER_HOST" --data-root "$cache/docker" --exec-root "$directory/exec" \
        --pidfile "$directory/dockerd.pid" "$@" </dev/null >"$directory/dockerd.log" 2>&1 &
    echo $! >"$directory/pid"
    until docker version >/dev/null 2>&1; do
        if ! is_engine "$directory" || ((SECONDS >= deadline)); then
            end "$directory"
            skip "the Docker engine does not start here: $(grep -v level=info "$directory/dockerd.log" | tail -n 1)"
        fi
        sleep 0.1
    done
}

# TERM, and KILL after 20 s.
end() {
    local pid child deadline=$((SECONDS + 20))
    [[ -f $1/pid ]] || return 0
    pid=$(<"$1/pid")
    if is_engine "$1"; then
        # Not to `unshare`, which does not pass it on.
        child=$(<"/proc/$pid/task/$pid/children") && kill -TERM "${child% }" || true
    fi
    while is_engine "$1"; do
        ((SECONDS < deadline)) || kill -KILL "$pid" || true
        sleep 0.1
    done
    rm -f "$1/pid" "$1/dockerd.pid" "$1/docker.sock"
}

stop() {
    end "$1"
    rm -rf "$1/exec"
}

# Not `kill -0`: the number may be another's by now, or that of a dead one that nobody has reaped. Not its command line: on
# the way from one program to the next a process has none.
is_engine() {
    [[ /proc/$(<"$1/pid")/fd/1 -ef $1/dockerd.log ]]
}

# images DIRECTORY: builds them all, at once, because most of it is waiting for the network.
images() {
    local from context=$1/context jobs=() job
    from=trio-runner-test/base:$(hash_of "${base[*]}" "$(<"$bundle")")
    if ! docker image inspect "$from" >/dev/null 2>&1; then
        "${base[@]}" | docker import --change "ENV PIP_CERT=$bundle" - "$from"
    fi
    mkdir "$context"
    cp -r "$(bash "$here/../support/apache_kafka.sh" jars)" "$context/jars"
    cp "$here"/docker/*.sh "$context"
    build "$from" "$here/docker/kafka.Dockerfile" trio-runner-test/kafka "$context" & jobs+=($!)
    build "$from" "$here/docker/postgres.Dockerfile" trio-runner-test/postgres "$context" & jobs+=($!)
    # One after the other: of equal layers made at once the builder later finds one, and perhaps the other's.
    {
        build "$from" "$here/../../deploy/Dockerfile" trio-runner "$here/../.."
        build "$from" "$here/../../deploy/Dockerfile" trio-runner-inference "$here/../.." --build-arg LOCK=requirements.lock
    } & jobs+=($!)
    for job in "${jobs[@]}"; do
        wait "$job"
    done
    rm -r "$context"
}

# build BASE DOCKERFILE TAG CONTEXT [OPTION...]: prints only errors.
build() {
    local log=$directory/build-${3##*/}.log
    docker build --network host --build-arg "BASE=$1" --file "$2" --tag "$3" "${@:5}" "$4" >"$log" 2>&1 || {
        cat "$log" >&2
        return 1
    }
}

hash_of() {
    printf '%s\0' "$@" | sha256sum | cut -c 1-16
}

skip() {
    echo "$1"
    exit 75
}

case ${1:-} in
    start) [[ $# -eq 2 ]] && { start "$2"; exit; } ;;
    stop) [[ $# -eq 2 ]] && { stop "$2"; exit; } ;;
esac
sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
exit 64

#!/usr/bin/env bash
# Kubernetes itself on the loopback, built from its Go modules (pinned in tests/deployment/kubernetes/go.sum):
#
#   tests/deployment/kubernetes.sh build                       once, about 5 min on 2 cores; `start` does it where it was not done
#   tests/deployment/kubernetes.sh start DIRECTORY [--node]    then `set -a; . DIRECTORY/kubernetes.env`
#   tests/deployment/kubernetes.sh stop DIRECTORY
#
# etcd, API server, controllers and scheduler: enough for every object and every decision of a controller, with tests in
# the kubelet's place. --node adds containerd and the kubelet, with an image of this tree. DIRECTORY is made; PYTHON names
# an interpreter that has the development dependencies; binaries are kept in TRIO_RUNNER_TEST_CACHE
# (~/.cache/trio-runner-tests). Exit code 75: something is missing; the last line names it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
cache=${TRIO_RUNNER_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/trio-runner-tests}
version=$(sed -n 's/^\tk8s.io\/kubernetes \(v.*\)$/\1/p' "$here/kubernetes/go.mod")
built_from=$(cat "$here"/kubernetes/{go.mod,go.sum,components.go,pause/main.go} | sha256sum | cut -c 1-16)
binaries=$cache/kubernetes-$version-$built_from
controllers=(job ttl-after-finished garbage-collector serviceaccount namespace statefulset disruption resourcequota
    node-lifecycle taint-eviction pod-garbage-collector root-ca-certificate-publisher)

build() {
    [[ -d $binaries ]] && return
    command -v go >/dev/null || skip "no go on the PATH, which builds Kubernetes (https://go.dev/dl, 1.21 or later)"
    mkdir -p "$cache"
    # A second build waits for the first, and finds it done.
    exec 9>"$cache/kubernetes.lock"
    flock 9
    if [[ ! -d $binaries ]]; then
        local started=$SECONDS made
        made=$(mktemp -d "$cache/making.XXXXXX")
        compile "$made" >"$made/log" 2>&1 || {
            tail -n 20 "$made/log"
            rm -r "$made"
            skip "Kubernetes could not be built: see above"
        }
        mv "$made/server" "$made/etcd"
        rm "$made/log"
        mv "$made" "$binaries"
        echo "Kubernetes $version built in $((SECONDS - started)) s: $binaries"
    fi
    exec 9>&-
}

# Without a version clients warn of v0.0.0. Without cgo the pause program needs no library in its image. Whatever
# runs here waits more than it works, so what counts is the compiler's time: without optimising and with less garbage
# collection it takes two thirds of it.
compile() (
    cd "$here/kubernetes"
    CGO_ENABLED=0 GOWORK=off GOFLAGS=-mod=readonly GOGC=400 nice go build -trimpath -gcflags="all=-N -l" -o "$1/" \
        -ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version" \
        go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/kube-{apiserver,controller-manager,scheduler} \
        k8s.io/kubernetes/cmd/kubelet ./pause
)

start() {
    local node=${2:-} tool
    [[ -e $1 ]] && { echo "$1 exists already" >&2; exit 64; }
    command -v curl >/dev/null || skip "no curl on the PATH"
    if [[ -n $node ]]; then
        [[ $node == --node ]] || usage
        [[ $(id -u) -eq 0 ]] || skip "a node needs root"
        for tool in containerd ctr runc /usr/lib/cni/loopback; do
            command -v "$tool" >/dev/null ||
                skip "no $tool (Debian: apt-get install containerd runc containernetworking-plugins)"
        done
    fi
    build
    mkdir -p "$1"
    directory=$(cd "$1" && pwd)
    trap 'code=$?; [[ $code -eq 0 ]] || stop "$directory"' EXIT
    "$python" "$here/kubernetes/cluster_files.py" "$directory" $node
    . "$directory/ports.env"
    control_plane
    [[ -z $node ]] || node
    cat "$directory/kubernetes.env"
}

control_plane() {
    run etcd --name=test --data-dir="$directory/etcd" --unsafe-no-fsync --log-level=warn \
        --listen-client-urls="http://127.0.0.1:$ETCD" --advertise-client-urls="http://127.0.0.1:$ETCD" \
        --listen-peer-urls="http://127.0.0.1:$ETCD_PEER" --initial-advertise-peer-urls="http://127.0.0.1:$ETCD_PEER" \
        --initial-cluster="test=http://127.0.0.1:$ETCD_PEER"
    # The mutating policies are for tests that need pods on the host's network, which the shipped objects do not ask for.
    run kube-apiserver --etcd-servers="http://127.0.0.1:$ETCD" --bind-address=127.0.0.1 --secure-port="$API" \
        --cert-dir="$directory" --service-account-issuer=https://kubernetes.test --authorization-mode=RBAC \
        --service-account-key-file="$directory/accounts.pub" --token-auth-file="$directory/tokens" \
        --service-account-signing-key-file="$directory/accounts.key" --service-cluster-ip-range=10.96.0.0/24 \
        --endpoint-reconciler-type=none --feature-gates=MutatingAdmissionPolicy=true \
        --runtime-config=admissionregistration.k8s.io/v1beta1=true
    until_so 60 kube-apiserver answers
    run kube-controller-manager --kubeconfig="$directory/kubeconfig" --leader-elect=false --secure-port=0 \
        --service-account-private-key-file="$directory/accounts.key" --root-ca-file="$directory/apiserver.crt" \
        --controllers="$(printf %s-controller, "${controllers[@]}" | sed 's/,$//')"
    run kube-scheduler --kubeconfig="$directory/kubeconfig" --leader-elect=false --secure-port=0
    until_so 60 kube-controller-manager has_default_account
}

node() {
    mkdir "$directory/images"
    "$python" "$here/kubernetes/image.py" "$binaries" "$directory/images"
    run containerd --config "$directory/containerd.toml"
    until_so 60 containerd images
    run kubelet --config="$directory/kubelet.yaml" --kubeconfig="$directory/kubeconfig" --root-dir="$directory/kubelet" \
        --cert-dir="$directory/kubelet-certificates" --hostname-override=node
    until_so 60 kubelet is_ready
}

answers() { kubectl_get /readyz; }
has_default_account() { kubectl_get /api/v1/namespaces/default/serviceaccounts/default; }
is_ready() { kubectl_get /api/v1/nodes/node | grep -q '"reason": *"KubeletReady"'; }

kubectl_get() {
    curl -sf --max-time 5 --cacert "$directory/apiserver.crt" -H @"$directory/header" "https://127.0.0.1:$API$1"
}

images() {
    local image
    for image in "$directory"/images/*.tar; do
        ctr -a "$directory/containerd.sock" -n k8s.io images import --snapshotter native "$image" || return
        rm "$image"
    done
}

# In a session of its own: Ctrl-C on the tests must not take the cluster away from under them.
run() {
    local program=$1
    shift
    PATH=$binaries:$PATH setsid "$program" "$@" </dev/null >"$directory/$program.log" 2>&1 9>&- &
    echo "$!" >"$directory/$program.pid"
    echo "$program" >>"$directory/started"
}

# until_so SECONDS PROGRAM COMMAND...
until_so() {
    local deadline=$((SECONDS + $1)) program=$2
    shift 2
    until "$@" >>"$directory/waiting.log" 2>&1; do
        if ((SECONDS >= deadline)) || ! is_ours "$program"; then
            tail -n 20 "$directory/waiting.log" "$directory/$program.log" >&2
            echo "$program did not start" >&2
            exit 1
        fi
        sleep 0.2
    done
}

# Backwards, so that nothing is written to what is gone: TERM, and KILL after 20 s.
stop() {
    local program deadline
    [[ -f $1/started ]] || return 0
    directory=$(cd "$1" && pwd)
    for program in $(tac "$directory/started"); do
        [[ $program != containerd ]] || end_containers
        deadline=$((SECONDS + 20))
        ! is_ours "$program" || kill -TERM "$(<"$directory/$program.pid")" || true
        while is_ours "$program"; do
            ((SECONDS < deadline)) || kill -KILL "$(<"$directory/$program.pid")" || true
            sleep 0.1
        done
    done
    rm "$directory/started"
    # The mounts of kubelet and containerd.
    awk -v under="$directory/" 'index($2, under) == 1 {print $2}' /proc/mounts | sort -r | while read -r mounted; do
        umount -l "$(printf %b "$mounted")"
    done
}

# With its shims, which outlive containerd.
end_containers() {
    local container deadline=$((SECONDS + 20)) pid
    for container in $(ctr -a "$directory/containerd.sock" -n k8s.io tasks list -q); do
        ctr -a "$directory/containerd.sock" -n k8s.io tasks delete -f "$container" || true
    done
    for pid in $(grep -lsF "$directory/containerd.sock" /proc/[0-9]*/cmdline | grep -o '[0-9]\+'); do
        if grep -qsF containerd-shim "/proc/$pid/cmdline"; then
            kill -TERM "$pid" || true
            while [[ -d /proc/$pid ]] && ((SECONDS < deadline)); do sleep 0.1; done
        fi
    done
}

# Not `kill -0`: the number may be another's by now, or that of a dead one that nobody has reaped. Not its command line: on
# the way from one program to the next a process has none.
is_ours() {
    [[ /proc/$(<"$directory/$1.pid")/fd/1 -ef $directory/$1.log ]]
}

skip() {
    echo "$1"
    exit 75
}

usage() {
    sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 64
}

case ${1:-} in
    build) [[ $# -eq 1 ]] && { build; exit; } ;;
    start) [[ $# -ge 2 && $# -le 3 ]] && { shift; start "$@"; exit; } ;;
    stop) [[ $# -eq 2 ]] && { stop "$2"; exit; } ;;
esac
usage

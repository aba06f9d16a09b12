#!/usr/bin/env bash
# Inference servers that other people wrote, each in a virtual environment of its own, on the loopback:
#
#   tests/support/inference_servers.sh start DIRECTORY    then `set -a; . DIRECTORY/servers.env`
#   tests/support/inference_servers.sh stop DIRECTORY
#
# DIRECTORY is made; PYTHON names an interpreter that has the development dependencies, uv among them. The environments
# stay in ${TRIO_RUNNER_TEST_CACHE:-~/.cache/trio-runner-tests}. A server that cannot be installed or does not start is
# named, and the others are started. Exit code 75: there is none at all.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
cache=${TRIO_RUNNER_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trio-runner-tests}

start() {
    local server address
    [[ -e $1 ]] && { echo "$1 exists already" >&2; exit 64; }
    mkdir -p "$1"
    directory=$(cd "$1" && pwd)
    : >"$directory/servers.env"
    for server in triton mlserver fastapi; do
        if environment=$(environment_of "$server") && "start_$server"; then
            address=http://127.0.0.1:$port
            if answers "$address" "$server"; then
                echo "TRIO_RUNNER_TEST_${server^^}=$address" | tee -a "$directory/servers.env"
                continue
            fi
            tail -n 20 "$directory/$server.log" >&2 || true
        fi
        echo "$server could not be installed or started here" >&2
    done
    [[ -s $directory/servers.env ]] || { echo "no inference server could be installed or started here"; exit 75; }
}

# Prints the path of a server's environment, which is never there in part.
environment_of() {
    local requirements=$here/inference_servers/$1.txt found new
    found=$cache/inference-$1-$(sha256sum <"$requirements" | cut -c 1-16)
    if [[ ! -d $found ]]; then
        mkdir -p "$cache"
        new=$(mktemp -d "$found.XXXXXX")
        # Triton's stub loads the libpython of the distribution. The environment is made where it stays: it holds paths.
        { "$(dirname "$python")/uv" venv -q --allow-existing --python "$(interpreter_for "$1")" "$found" &&
            "$(dirname "$python")/uv" pip install -q --python "$found/bin/python" -r "$requirements"; } \
            >"$new/log" 2>&1 || { cat "$new/log" >&2; rm -rf "$new" "$found"; return 1; }
        rm -rf "$new"
    fi
    echo "$found"
}

interpreter_for() {
    if [[ $1 == triton && -x /usr/bin/python3.11 ]]; then echo /usr/bin/python3.11; else echo "$python"; fi
}

start_triton() {
    local site=$environment/lib/python3.11/site-packages model server
    server=$site/pytriton/tritonserver
    [[ -x $server/bin/tritonserver ]] || return 1
    mkdir -p "$directory/backends/python"
    cp -r "$server"/backends/python/* "$directory/backends/python/"
    cp "$server/python_backend_stubs/3.11/triton_python_backend_stub" "$directory/backends/python/"
    for model in jpeg tensor; do
        mkdir -p "$directory/models/$model/1"
        cp "$here/inference_servers/triton_model.py" "$directory/models/$model/1/model.py"
    done
    cat >"$directory/models/jpeg/config.pbtxt" <<'CONFIG'
backend: "python"
max_batch_size: 0
input [ { name: "image", data_type: TYPE_STRING, dims: [ 1 ] } ]
output [ { name: "boxes", data_type: TYPE_FP32, dims: [ -1, 4 ] },
         { name: "scores", data_type: TYPE_FP32, dims: [ -1 ] },
         { name: "labels", data_type: TYPE_STRING, dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU } ]
CONFIG
    cat >"$directory/models/tensor/config.pbtxt" <<'CONFIG'
backend: "python"
max_batch_size: 4
input [ { name: "image", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ] } ]
output [ { name: "boxes", data_type: TYPE_FP32, dims: [ -1, 4 ] },
         { name: "scores", data_type: TYPE_FP32, dims: [ -1 ] },
         { name: "labels", data_type: TYPE_STRING, dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU } ]
CONFIG
    free_port
    local grpc=$port metrics
    free_port
    metrics=$port
    free_port
    # The Python of a model's process finds its packages by the first python3 on the PATH.
    LD_LIBRARY_PATH=$site/nvidia_pytriton.libs:$(/usr/bin/python3.11 -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))') \
        PATH=$environment/bin:$PATH PYTHONPATH=$site:$root run triton "$server/bin/tritonserver" --model-repository="$directory/models" \
        --backend-directory="$directory/backends" --http-address 127.0.0.1 --http-port "$port" \
        --grpc-address 127.0.0.1 --grpc-port "$grpc" --metrics-address 127.0.0.1 --metrics-port "$metrics"
}

start_mlserver() {
    local grpc metrics
    mkdir -p "$directory/mlserver"
    free_port
    grpc=$port
    free_port
    metrics=$port
    free_port
    cat >"$directory/mlserver/settings.json" <<CONFIG
{"host": "127.0.0.1", "http_port": $port, "grpc_port": $grpc, "metrics_port": $metrics, "parallel_workers": 0}
CONFIG
    cat >"$directory/mlserver/model-settings.json" <<'CONFIG'
{"name": "jpeg", "implementation": "tests.support.inference_servers.mlserver_model.Detector"}
CONFIG
    PYTHONPATH=$root run mlserver "$environment/bin/mlserver" start "$directory/mlserver"
}

start_fastapi() {
    free_port
    PYTHONPATH=$root run fastapi "$environment/bin/python" -m uvicorn --host 127.0.0.1 --port "$port" \
        tests.support.inference_servers.service:app
}

# run NAME COMMAND...: in a session of its own, so that Ctrl-C on the tests does not take the server away.
run() {
    local name=$1
    shift
    setsid "$@" </dev/null >"$directory/$name.log" 2>&1 &
    echo $! >"$directory/$name.pid"
}

# Sets `port`: the function runs in this shell, so that its caller gets it.
free_port() {
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
}

# Whether the server at the address is ready within two minutes.
answers() {
    local path=/v2/health/ready
    [[ $2 == fastapi ]] && path=/openapi.json
    "$python" - "$1$path" "$(<"$directory/$2.pid")" <<'PYTHON'
import os, sys, time, urllib.error, urllib.request

deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=2) as answer:
            sys.exit(answer.status != 200)
    except OSError:
        os.kill(int(sys.argv[2]), 0)
        time.sleep(0.2)
sys.exit(1)
PYTHON
}

stop() {
    local file waited
    for file in "$1"/*.pid; do
        [[ -e $file ]] || continue
        kill -- "-$(<"$file")" 2>/dev/null || true
        for waited in {1..50}; do
            kill -0 -- "-$(<"$file")" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$(<"$file")" 2>/dev/null || true
    done
}

case ${1:-} in
    start | stop) "$@" ;;
    *)
        echo "usage: $0 start|stop DIRECTORY" >&2
        exit 64
        ;;
esac

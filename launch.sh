#!/usr/bin/env bash
# From a fresh clone to a running command: makes .venv, installs the pinned packages, runs.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch.sh [ARGUMENTS OF mgc_jax.main]   set up, then train, evaluate, report (default: the demo)
       ./launch.sh test [ARGUMENTS OF pytest]    set up, then run the test suite
       ./launch.sh setup                         set up only
       ./launch.sh tpu NAME --zone=ZONE [--project=PROJECT] [--type=v4-32 [--version=VERSION]] [--dry_run]
                       -- [ARGUMENTS OF mgc_jax.main]
                                                 the same command on every worker of the TPU VM slice NAME; where
                                                 it does not exist yet, --type has it made

Needs Python 3.11 or newer with pip. PYTHON=/path/to/python names one; EXTRAS=test,cuda (NVIDIA GPUs, Linux) or
EXTRAS=test,tpu adds what an accelerator needs. Paths in arguments are relative to this folder.
TEXT
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python ./launch.sh" >&2
  exit 1
}

# Installs once: the stamp holds what the installation was made from.
setup() {
  local extras wanted python
  extras=${EXTRAS:-$(cat .venv/extras 2>/dev/null || echo test)}
  wanted=$(cat setup.cfg pyproject.toml constraints.txt <(echo "$PWD $extras"))
  if [[ -f .venv/installed && "$(cat .venv/installed)" == "$wanted" ]]; then
    return
  fi
  python=$(find_python)
  echo "setting up .venv with $("$python" --version) (some minutes, once)" >&2
  if ! "$python" -m venv --clear .venv; then
    echo "error: $python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2
    exit 1
  fi
  .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$extras]"
  printf '%s' "$extras" > .venv/extras
  printf '%s' "$wanted" > .venv/installed
}

# Makes a TPU VM if need be, copies this folder to all workers, installs there, and runs the same command on each.
tpu() {
  [[ $# -gt 0 && $1 != -* ]] || { usage >&2; exit 1; }
  local name=$1 run= type= version=tpu-ubuntu2204-base flags=() tpu_vm=(gcloud compute tpus tpu-vm)
  shift
  while [[ $# -gt 0 && $1 != -- ]]; do
    case $1 in
      --dry_run) run=echo ;;
      --zone=* | --project=*) flags+=("$1") ;;
      --type=*) type=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      *) echo "error: unknown argument $1 (arguments of mgc_jax.main follow --)" >&2; exit 1 ;;
    esac
    shift
  done
  [[ $# -eq 0 ]] || shift
  local command
  archive=$(mktemp)  # not local: the trap outlives this function
  trap 'rm -f "$archive"' EXIT
  tar --exclude=./.venv --exclude=./.git --exclude=./runs --exclude=./tfrecords --exclude=__pycache__ -czf "$archive" .
  command="mkdir -p mgc_jax && tar -xzf mgc_jax.tar.gz -C mgc_jax && cd mgc_jax && EXTRAS=test,tpu ./launch.sh --multihost"
  [[ $# -eq 0 ]] || command+=$(printf ' %q' "$@")
  if [[ -n $type ]] && { [[ -n $run ]] || ! "${tpu_vm[@]}" describe "$name" "${flags[@]}" &>/dev/null; }; then
    $run "${tpu_vm[@]}" create "$name" "${flags[@]}" --accelerator-type="$type" --version="$version"
  fi
  $run "${tpu_vm[@]}" scp "$archive" "$name:mgc_jax.tar.gz" --worker=all "${flags[@]}"
  $run "${tpu_vm[@]}" ssh "$name" --worker=all "${flags[@]}" --command="$command"
}

cd "$(dirname "${BASH_SOURCE[0]}")"
case ${1:-} in
  -h | --help) usage ;;
  setup) setup ;;
  test) shift; setup; exec .venv/bin/python -m pytest -q "$@" ;;
  tpu) shift; tpu "$@" ;;
  *) setup; exec .venv/bin/python -m mgc_jax.main "$@" ;;
esac

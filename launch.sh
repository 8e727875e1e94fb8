#!/usr/bin/env bash
# From a fresh clone to a running command: makes .venv, installs the pinned packages, runs.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./launch.sh [ARGUMENTS OF mgc_jax.main]   set up, then train, evaluate, report (default: the demo)
       ./launch.sh test [ARGUMENTS OF pytest]    set up, then run the test suite, in up to four processes
       ./launch.sh reproduce [ARGUMENTS OF mgc_jax.reproduce]
                                                 set up, then make the source's results table anew
       ./launch.sh setup                         set up only
       ./launch.sh tpu NAME --zone=ZONE [--project=PROJECT] [--type=v4-32 [--version=VERSION]] [--dry_run]
                       -- [ARGUMENTS OF mgc_jax.main]
                                                 the same command on every worker of the TPU VM slice NAME; where
                                                 it does not exist yet, --type has it made

Needs Python 3.11 to 3.13 with pip, on Linux or macOS. PYTHON=/path/to/python names one; EXTRAS=cuda (NVIDIA GPUs,
Linux) or EXTRAS=tpu adds what an accelerator needs. Paths in arguments are relative to this folder.
TEXT
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found (TensorFlow has no packages for a newer one yet); install one," \
    "or name it: PYTHON=/path/to/python ./launch.sh" >&2
  exit 1
}

# Installs what the main job needs, and the extras given or named in EXTRAS, once: .venv/installed holds what the
# installation was made from, .venv/extras what it has. More extras are added to it; other files make it anew.
setup() {
  local wanted python extra had='' missing=''
  wanted=$(cat setup.cfg pyproject.toml constraints.txt <(echo "$PWD"))
  if [[ ! -f .venv/installed || "$(cat .venv/installed)" != "$wanted" ]]; then
    python=$(find_python)
    echo "setting up .venv with $("$python" --version) (some minutes, once)" >&2
    had=$(cat .venv/extras 2>/dev/null || true)
    if ! "$python" -m venv --clear .venv; then
      echo "error: $python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2
      exit 1
    fi
    install
    printf '%s' "$wanted" > .venv/installed
  fi
  for extra in $(printf '%s\n' "$had" "${EXTRAS:-}" "$@" | tr ',' '\n' | sort -u); do
    grep -qxF "$extra" .venv/extras 2>/dev/null || missing+=",$extra"
  done
  if [[ -n $missing ]]; then
    echo "adding to .venv: ${missing#,}" >&2
    install "[${missing#,}]"
    tr ',' '\n' <<< "${missing#,}" >> .venv/extras
  fi
}

install() {
  .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".${1:-}"
}

# Makes a TPU VM if need be, copies this folder to all workers, installs there, and runs the same command on each.
tpu() {
  [[ $# -gt 0 && $1 != -* ]] || { usage >&2; exit 1; }
  local name=$1 run= type= version=tpu-ubuntu2204-base flags=() tpu_vm=(gcloud compute tpus tpu-vm)
  shift
  while [[ $# -gt 0 && $1 != -- ]]; do
    case $1 in
      --zone | --project | --type | --version)
        [[ $# -gt 1 ]] || { echo "error: $1 needs a value" >&2; exit 1; }
        set -- "$1=$2" "${@:3}"
        continue
        ;;
      --dry_run) run=print_command ;;
      --zone=* | --project=*) flags+=("$1") ;;
      --type=*) type=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      *) echo "error: unknown argument $1 (arguments of mgc_jax.main follow --)" >&2; exit 1 ;;
    esac
    shift
  done
  [[ $# -eq 0 ]] || shift
  local command
  archive=mgc_jax.tar.gz
  if [[ -z $run ]]; then
    archive=$(mktemp)  # not local: the trap outlives this function
    trap 'rm -f "$archive"' EXIT
    # What is tracked, and the user's own configs.
    { git ls-files; ls configs/*.py; } | sort -u | sed 's|^|./|' | tar -czf "$archive" --no-recursion -T -
  fi
  command="mkdir -p mgc_jax && tar -xzf mgc_jax.tar.gz -C mgc_jax && cd mgc_jax && EXTRAS=tpu ./launch.sh --multihost"
  [[ $# -eq 0 ]] || command+=$(printf ' %q' "$@")
  if [[ -n $type ]] && { [[ -n $run ]] || ! "${tpu_vm[@]}" describe "$name" "${flags[@]}" &>/dev/null; }; then
    $run "${tpu_vm[@]}" create "$name" "${flags[@]}" --accelerator-type="$type" --version="$version"
  fi
  $run "${tpu_vm[@]}" scp "$archive" "$name:mgc_jax.tar.gz" --worker=all "${flags[@]}"
  $run "${tpu_vm[@]}" ssh "$name" --worker=all "${flags[@]}" --command="$command"
}

# So quoted that it can be pasted.
print_command() {
  printf '%q ' "$@"
  echo
}

cd "$(dirname "${BASH_SOURCE[0]}")"
case ${1:-} in
  -h | --help) usage ;;
  setup) setup ;;
  # Modules stay whole: their fixtures are made once.
  test) shift; setup test; exec .venv/bin/python -m pytest -q -n auto --dist=loadfile --no-loadscope-reorder "$@" ;;
  tpu) shift; tpu "$@" ;;
  reproduce) shift; setup; exec .venv/bin/python -m mgc_jax.reproduce "$@" ;;
  *) setup; exec .venv/bin/python -m mgc_jax.main "$@" ;;
esac

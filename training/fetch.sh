#!/usr/bin/env bash
# Fetch by package name all that the data is made of, into one folder, and a Python for the tracer.
#   bash training/fetch.sh .work/assets
# Needs Debian 12's apt (root, or apt-get download as any user), npm and Python 3.11; 160 MB.
set -euo pipefail
assets=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
cd "$assets"
if [ ! -d shf ]; then
    apt-get update -qq
    apt-get download sweethome3d-furniture libllvm19
    dpkg -x sweethome3d-furniture_*.deb shf
    dpkg -x libllvm19_*.deb llvm
fi
[ -d package ] || { npm pack --silent @pmndrs/assets@1.7.0 && tar xzf pmndrs-assets-1.7.0.tgz; }
if [ ! -x venv/bin/python ]; then
    python3.11 -m venv venv
    venv/bin/pip install --quiet -r "$here/requirements.txt"
fi
echo "export DRJIT_LIBLLVM_PATH=$(echo "$assets"/llvm/usr/lib/*/libLLVM.so.19.1)" > environment
echo "ready: source $assets/environment"

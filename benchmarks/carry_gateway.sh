#!/usr/bin/env bash
# How the gateway scales, on a machine with many cores, Python 3.12 and no network.
#
#   bash benchmarks/carry_gateway.sh          here: fill .whl/gateway (43 MB, not in git) with the wheels,
#                                             wrk, nginx, Debian's Python 3.11 (built with profiles)
#                                             and the last commit's src and benchmarks
#   bash benchmarks/carry_gateway.sh run      there: unpack it to /tmp/sp and measure workers 1, 2, 4, 8
#
# More words after `run` go to benchmarks/gateway.py, such as --workers 1,2. OURS=debian runs the gateway
# on the Python that was brought along; load and all else are on the machine's 3.12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NEEDS=(asyncpg cryptography genai-prices hiredis httptools msgspec pyyaml rich starlette typer uvloop)
DEBS=(wrk nginx libluajit-5.1-2 libluajit-5.1-common libpcre2-8-0 libcrypt1 libssl3 zlib1g
  libc6 libgcc-s1 libstdc++6 libexpat1 libffi8 libsqlite3-0 libbz2-1.0 liblzma5 libuuid1
  python3.11-minimal libpython3.11-minimal libpython3.11-stdlib)
OUT=/tmp/sp

fill() {
  mkdir -p .whl/gateway/debs
  local python
  python=$(command -v .venv/bin/python || command -v python3)
  for version in 3.11 3.12; do
    "$python" -m pip download --quiet --only-binary :all: --python-version "$version" \
      --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
      --constraint constraints.txt --dest .whl/gateway "${NEEDS[@]}"
  done
  (cd .whl/gateway/debs && apt-get download -qq "${DEBS[@]}")
  # What others change in this tree meanwhile is not measured.
  git archive --format tar --output .whl/gateway/tree.tar HEAD src benchmarks
  git log -1 --format=%h >.whl/gateway/commit
  du -sh .whl/gateway
}

unpack() { # a folder of packages for each Python, and Debian's files with a loader of their own
  rm -rf "$OUT"
  mkdir -p "$OUT"/{cp311,cp312,debian,bin}
  python3 - "$OUT" <<'PY'
import pathlib, sys, zipfile
out = pathlib.Path(sys.argv[1])
for wheel in sorted(pathlib.Path(".whl/gateway").glob("*.whl")):
    tag = wheel.stem.split("-")[-3:]
    for mine in ("cp311", "cp312"):
        if tag[0] == mine or tag[0].startswith("py") or tag[1] == "abi3":
            zipfile.ZipFile(wheel).extractall(out / mine)
PY
  tar --extract --file .whl/gateway/tree.tar --directory "$OUT"
  local each
  for each in .whl/gateway/debs/*.deb; do
    if command -v dpkg-deb >/dev/null; then
      dpkg-deb --extract "$each" "$OUT/debian"
    else
      python3 - "$each" "$OUT/debian" <<'PY'
import io, lzma, pathlib, sys, tarfile
data = pathlib.Path(sys.argv[1]).read_bytes()
at = 8  # an ar archive: after the magic, heads of 60 bytes
while at < len(data):
    name, size = data[at:at + 16].decode().strip(), int(data[at + 48:at + 58])
    if name.startswith("data.tar.xz"):
        inner = io.BytesIO(lzma.decompress(data[at + 60:at + 60 + size]))
        tarfile.open(fileobj=inner).extractall(sys.argv[2], filter="tar")
    at += 60 + size + size % 2
PY
    fi
  done
  # With the loader and the libraries that they were built for.
  local root=$OUT/debian lib
  lib=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu
  wrapper wrk "$root/usr/bin/wrk"
  wrapper nginx "$root/usr/sbin/nginx"
  # Not so Python, which starts more of itself by its own path.
  printf '#!/bin/sh\nPYTHONPATH=%s exec %s "$@"\n' "$OUT/src:$OUT/cp311" \
    "$root/usr/bin/python3.11" >"$OUT/bin/debian"
  chmod +x "$OUT/bin/debian"
}

wrapper() { # NAME PROGRAM
  printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' \
    "$OUT/debian/lib64/ld-linux-x86-64.so.2" "$lib" "$2" >"$OUT/bin/$1"
  chmod +x "$OUT/bin/$1"
}

run() {
  unpack >&2
  echo "commit $(<.whl/gateway/commit)"
  lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Core|Socket|NUMA node)' || true
  export PATH=$OUT/bin:$PATH PYTHONPATH=$OUT/src:$OUT/cp312
  local python
  python=$(command -v python3.12 || command -v python3)
  [[ ${OURS:-} != debian ]] || set -- --python "$OUT/bin/debian" "$@"
  exec timeout 280 "$python" "$OUT/benchmarks/gateway.py" --only none --rivals nginx --workers 1,2,4,8 \
    --rounds 4 --seconds 1 "$@"
}

case ${1:-fill} in
  fill) fill ;;
  run) run "${@:2}" ;;
  *) echo "carry_gateway.sh [fill|run …]" >&2; exit 2 ;;
esac

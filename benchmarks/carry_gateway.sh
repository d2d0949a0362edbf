#!/usr/bin/env bash
# How the gateway scales, on a machine with many cores, Python 3.12 and no network.
#
#   bash benchmarks/carry_gateway.sh          here: pack what is needed into .whl/gateway.tar.xz (8 MB, not in
#                                             git): the last commit's src and benchmarks, wheels, wrk, nginx
#   bash benchmarks/carry_gateway.sh run      there: unpack it to /tmp/sp and measure workers 1, 2, 4, 8
#
# More words after `run` go to benchmarks/gateway.py, such as --workers 1,2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NEEDS=(genai-prices hiredis httptools msgspec pyyaml rich starlette typer uvloop)
DEBS=(wrk nginx libluajit-5.1-2 libpcre2-8-0 libcrypt1 libssl3 zlib1g libc6 libgcc-s1)
OUT=/tmp/sp
PACK=.whl/gateway.tar.xz

fill() {
  local made
  made=$(mktemp -d)
  trap 'rm -rf "$made"' RETURN
  mkdir -p .whl "$made"/{wheels,debs,sp/lib,sp/bin,sp/site}
  "$(command -v .venv/bin/python || command -v python3)" -m pip download --quiet --only-binary :all: \
    --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    --constraint constraints.txt --dest "$made/wheels" "${NEEDS[@]}"
  local each
  for each in "$made"/wheels/*.whl; do python3 -m zipfile -e "$each" "$made/sp/site"; done
  (cd "$made/debs" && apt-get download -qq "${DEBS[@]}")
  for each in "$made"/debs/*.deb; do dpkg-deb --extract "$each" "$made/root"; done
  # The files that links lead to: an absolute link would lead to that machine's own.
  for each in $(find "$made/root" -name '*.so.*' -path '*x86_64-linux-gnu/*' -type l -printf '%f\n'); do
    cp "$(find "$made/root" -name "$each" -type l -exec readlink -f {} \; | head -1)" "$made/sp/lib/$each"
  done
  find "$made/root" -path '*x86_64-linux-gnu/*' -name '*.so.*' -type f -exec cp -n {} "$made/sp/lib/" \;
  cp "$made/root/usr/bin/wrk" "$made/sp/bin/wrk.real"
  cp "$made/root/usr/sbin/nginx" "$made/sp/bin/nginx.real"
  find "$made/sp" -name '*.so*' -exec strip --strip-unneeded {} + 2>/dev/null || true
  for each in wrk nginx; do # with the loader and the libraries that they were built for
    printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' \
      "$OUT/lib/ld-linux-x86-64.so.2" "$OUT/lib" "$OUT/bin/$each.real" >"$made/sp/bin/$each"
    chmod +x "$made/sp/bin/$each"
  done
  # What others change in this tree meanwhile is not measured.
  git archive HEAD src benchmarks | tar --extract --directory "$made/sp"
  git log -1 --format=%h >"$made/sp/commit"
  tar --create --xz --file "$PACK" --directory "$made" sp
  du -h "$PACK"
}

run() {
  tar --extract --file "$PACK" --directory /tmp
  mkdir -p /var/lib/nginx /var/log/nginx # which Debian's nginx looks for, whatever its settings
  echo "commit $(<"$OUT/commit")"
  lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Core|Socket|NUMA node)' || true
  export PATH=$OUT/bin:$PATH PYTHONPATH=$OUT/src:$OUT/site
  exec timeout 280 "$(command -v python3.12 || command -v python3)" "$OUT/benchmarks/gateway.py" \
    --only none --rivals nginx --workers 1,2,4,8 --rounds 4 --seconds 1 "$@"
}

case ${1:-fill} in
  fill) fill ;;
  run) run "${@:2}" ;;
  *) echo "carry_gateway.sh [fill|run …]" >&2; exit 2 ;;
esac

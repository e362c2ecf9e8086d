#!/usr/bin/env bash
# Makes beforehand what is carried to the machine with a GPU, which has no network.
#
#   gpu/pack.sh [FOLDER [VERSION]]     the packages that the machine lacks, for its Python
#
# FOLDER is build/gpu-kit and VERSION is 3.12 if not given; gpu/carried.txt names the packages. PYTHON
# is the interpreter whose pip is used. The folder and the tree go there in one call, whose size is
# checked. Clips are drawn there. `make gpu-train` makes what is carried for training.
#
# xz saves 12 of the 38 MiB that the wheels have. LEVEL, 0 to 9, trades time for size.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3} level=${LEVEL:-9}
folder=${1:-build/gpu-kit} version=${2:-3.12}
scratch=$folder.scratch
max_bytes=$((64 << 20))  # of one call: the tree and what is carried

rm -rf "$folder" "$scratch"
mkdir -p "$folder" "$scratch"
platforms=()
for platform in manylinux_2_{28,27,26,24,17}_x86_64 manylinux2014_x86_64 manylinux1_x86_64; do
  platforms+=(--platform "$platform")
done
"$python" - >"$scratch/constraints.txt" <<'END'
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")
END
# The folder's name matters: the sandbox lets a child read packages in one called so.
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
  --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" \
  --constraint "$scratch/constraints.txt" --requirement gpu/carried.txt \
  --target "$scratch/site-packages"
tar --create --sort=name --owner=0 --group=0 --directory "$scratch" site-packages |
  xz --threads=0 "-$level" >"$folder/packages.tar.xz"
(cd "$scratch" && ls -d site-packages/*.dist-info) | sed 's#.*/##; s#\.dist-info$##' \
  >"$folder/packages.txt"
rm -r "$scratch"

tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 stat --format %s -- 2>/dev/null |
  awk '{ sum += $1 } END { print sum + 0 }') || true  # a file that was deleted is listed still
carried=$(find "$folder" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }')
awk -v tree="$tree" -v carried="$carried" -v most="$max_bytes" 'BEGIN {
  printf "tree %.1f MiB, carried %.1f MiB, together %.1f of %.0f MiB\n",
    tree / 2^20, carried / 2^20, (tree + carried) / 2^20, most / 2^20
}' | tee "$folder/manifest.txt"
find "$folder" -type f ! -name manifest.txt -printf '%s %P\n' | sort -k 2 >>"$folder/manifest.txt"
if ((tree + carried > max_bytes)); then
  echo "the tree and what is carried are larger than one call takes" >&2
  exit 1
fi

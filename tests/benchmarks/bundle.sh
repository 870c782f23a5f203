#!/usr/bin/env bash
# Packs what gpu.py needs on a machine without a network, into pieces of 55 MB:
#
#     bash tests/benchmarks/bundle.sh OUT [--cifar10 ROOT] [--photos FOLDER]
#
# OUT is a directory for the pieces (OUT/piece-00, ...). They are one tar: unpack as many as there are, in order,
#     cat OUT/piece-* | tar -x -C TO --ignore-zeros
# which gives first the small wheels, then the photographs, CIFAR-10 and Ray. ROOT is where torchvision finds CIFAR-10.
# FOLDER holds train/<class>/*.JPEG and val/<class>/*.JPEG: 300 of the one and 100 of the other are taken, evenly.
# Wheels are for Python 3.12 on Linux, x86-64, at the versions that are installed here. Needs a network.
set -euo pipefail

out=${1:?bundle.sh OUT [--cifar10 ROOT] [--photos FOLDER]}
shift
cifar10="" photos=""
while (($#)); do
    case $1 in
    --cifar10) cifar10=$2 ;;
    --photos) photos=$2 ;;
    *)
        echo "bundle.sh: unknown argument $1" >&2
        exit 2
        ;;
    esac
    shift 2
done
python=${PYTHON:-python3}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/wheels" "$work/photos" "$work/cifar10"

# What raymu and its tests import and such a machine may lack; Ray last, as it is the largest by far.
small="orjson filelock optuna alembic colorlog sqlalchemy mako greenlet plotly narwhals pyyaml huggingface-hub jinja2
    pytest pytest-timeout pytest-xdist execnet pluggy iniconfig hjson py-cpuinfo einops ninja msgpack psutil pydantic
    pydantic-core annotated-types typing-inspection jsonschema jsonschema-specifications referencing rpds-py attrs
    tensorboardX protobuf requests urllib3 idna certifi charset-normalizer click packaging fsspec tqdm"
wheel() {
    local version
    version=$("$python" -c "import importlib.metadata as m; print(m.version('$1'))" 2>/dev/null) || return 0
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux_2_5_x86_64 --platform manylinux1_x86_64 \
        --dest "$work/wheels" "$1==$version" || echo "bundle.sh: there is no wheel of $1 $version" >&2
}
for package in $small ray; do wheel "$package"; done
version=$("$python" -c "import importlib.metadata as m; print(m.version('deepspeed'))")
DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheels" "deepspeed==$version"

if [[ -n $photos ]]; then
    for part in "train 300" "val 100"; do
        read -r name count <<<"$part"
        # Of the first 20 classes, which both parts have.
        (cd "$photos" && find $(ls -d train/* | sort | head -20 | sed "s|^train|$name|") -type f | sort) >"$work/list"
        awk -v take="$count" '{ line[NR] = $0 } END { step = NR > take ? NR / take : 1
            for (place = 1; place <= NR; place += step) print line[int(place)] }' "$work/list" |
            (cd "$photos" && xargs cp --parents -t "$work/photos")
    done
fi

if [[ -n $cifar10 ]]; then
    "$python" - "$cifar10" "$work/cifar10" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10

root, out = sys.argv[1], Path(sys.argv[2])
for part in ("train", "test"):
    source = CIFAR10(root, train=part == "train")
    np.save(out / f"{part}-labels.npy", np.asarray(source.targets, dtype=np.int64))
    for number, images in enumerate(np.split(source.data, len(source.data) // 2500)):  # sheets of 50 x 50, lossless
        sheet = images.reshape(50, 50, 32, 32, 3).swapaxes(1, 2).reshape(1600, 1600, 3)
        Image.fromarray(sheet).save(out / f"{part}-{number:02d}.webp", lossless=True, quality=50)
PYTHON
fi

cd "$work"
ray=$(find wheels -name 'ray-*')
{
    tar -c --exclude "$ray" wheels photos cifar10
    [[ -z $ray ]] || tar -c "$ray"
} | split --bytes=55M --numeric-suffixes - pieces-
cd - >/dev/null
for piece in "$work"/pieces-*; do mv "$piece" "$out/piece-${piece##*-}"; done
ls -l "$out"

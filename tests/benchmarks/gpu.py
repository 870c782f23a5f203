"""Half an hour on a bare machine with one GPU: all that can only be said there, in order of its worth.

    bash tests/benchmarks/bundle.sh bundle --cifar10 ROOT --photos FOLDER   # where there is a network: pieces of 55 MB
    cat bundle/piece-* | tar -x -C /tmp/bundle --ignore-zeros               # on the machine, as many as have arrived
    python tests/benchmarks/gpu.py --bundle /tmp/bundle --out out
    python tests/benchmarks/gpu.py --table out > docs/gpu.md

The machine needs Python 3.11 or later, torch with CUDA, torchvision, timm, scikit-learn, pandas, pyarrow, typer, rich,
safetensors and filelock; what else there is comes with the bundle, and a part that misses something says so. Each part
is a process of its own, which is ended when its time is over, and writes what it has found to OUT/<part>.json after
each measurement: whatever cuts it off loses nothing. With --device cpu --tiny the whole is rehearsed without a GPU.
"""

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Seconds that each part may take, in order of their worth: 29 minutes together.
PARTS = {
    "tests": 200,
    "methods": 240,
    "steps": 150,
    "evaluation": 80,
    "vits": 150,
    "decoders": 80,
    "side_by_side": 120,
    "cifar10": 480,
    "ray": 100,
    "deepspeed": 140,
}


class Report:
    """What a part has found so far, in OUT/<part>.json.

    Args:
        path: of the file.
        machine: what the part ran on.
        limit: seconds that it may take.
    """

    def __init__(self, path: Path, machine: str, limit: float) -> None:
        self._path, self._started = path, time.monotonic()
        self.content: dict[str, Any] = {"part": path.stem, "machine": machine, "limit_s": limit, "ended": "cut off"}
        self.content["found"] = []

    def add(self, **found: Any) -> None:
        """Add a measurement; it is on the disk when this returns."""
        self.content["found"].append(found)
        print(json.dumps(found), flush=True)
        self.write()

    def write(self) -> None:
        """In one step: who reads sees a whole file."""
        self.content["seconds"] = round(time.monotonic() - self._started, 1)
        unfinished = self._path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.content, indent=1))
        unfinished.replace(self._path)


def install(bundle: Path) -> str:
    """A directory with the bundle's wheels, for PYTHONPATH; those of packages that are there already are left out."""
    site, missing = bundle / "site", list[Path]()
    for wheel in sorted((bundle / "wheels").glob("*.whl")):
        name = wheel.name.partition("-")[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if not list(site.glob(f"{name}-*.dist-info")):  # of an earlier call
                missing.append(wheel)
    for wheel in missing:
        try:  # the last one may not have arrived as a whole
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(site)
                for member in packed.infolist():  # extractall leaves out who may run a file, as Ray's servers
                    if (mode := member.external_attr >> 16 & 0o777) and not member.is_dir():
                        (site / member.filename).chmod(mode | 0o600)
        except zipfile.BadZipFile as error:
            print(f"   left out: {wheel}: {error}", flush=True)
    return str(site)


def run_part(name: str, options: argparse.Namespace) -> None:
    """In this process: what `run_all` starts."""
    import gpu_parts
    from engine import describe

    report = Report(options.out / f"{name}.json", describe(), PARTS[name])
    report.write()
    try:
        getattr(gpu_parts, name)(report, options)
        report.content["ended"] = "complete"
    except ModuleNotFoundError as error:
        report.content["ended"] = f"left out: {error}"
    except Exception as error:
        report.content["ended"] = f"failed: {type(error).__name__}: {error}"
        report.content["traceback"] = traceback.format_exc()
    report.write()


def run_all(options: argparse.Namespace) -> None:
    """Each part in a process of its own, one after the other."""
    options.out.mkdir(parents=True, exist_ok=True)
    site = install(options.bundle) if options.bundle else ""
    paths = [str(HERE), str(HERE.parent), str(HERE.parent.parent), os.environ.get("PYTHONPATH", ""), site]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    # A daemon of MPS that outlives its part is seen by no other one.
    with_mps = {f"CUDA_MPS_{kind}_DIRECTORY": tempfile.mkdtemp(prefix="mps-") for kind in ("PIPE", "LOG")}
    environment.setdefault("RAYMU_CACHE", str(Path(tempfile.gettempdir()) / "raymu-gpu"))  # not among what is found
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what a part started ends with it
    ended_well = True
    for name in options.parts.split(","):
        print(f"== {name}, at most {PARTS[name]} s", flush=True)
        (options.out / f"{name}.json").unlink(missing_ok=True)  # an earlier call's is not this one's
        command = [sys.executable, __file__, *sys.argv[1:], "--parts", name, "--here"]
        given = environment | with_mps if name == "side_by_side" else environment
        process = subprocess.Popen(command, env=given, start_new_session=True)
        try:
            ended_well &= process.wait(PARTS[name]) == 0
        except subprocess.TimeoutExpired:
            print(f"   cut off after {PARTS[name]} s", flush=True)
        finally:  # also on Ctrl-C
            kill(process)
    if not ended_well:
        sys.exit("a part ended before it could say why; see above")


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def table(directory: Path) -> str:
    """Markdown of all that was found."""
    lines = []
    for name in PARTS:
        if not (path := directory / f"{name}.json").exists():
            continue
        part = json.loads(path.read_text())
        lines += [f"## {name}", "", f"{part['machine']}; {part['seconds']} of {part['limit_s']} s; {part['ended']}", ""]
        columns: list[str] = []
        for columns_of in part["found"]:
            columns += [column for column in columns_of if column not in columns]
        if columns:
            lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            for found in part["found"]:
                cells = (" ".join(str(found.get(column, "")).split()).replace("|", r"\|") for column in columns)
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the parts, or print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="directory for the JSON files")
    parser.add_argument("--parts", default=",".join(PARTS), help="names, separated by commas")
    parser.add_argument("--bundle", type=Path, help="directory that the bundle was unpacked to")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="everything as small as it can be")
    parser.add_argument("--table", type=Path, metavar="OUT", help="print a directory's JSON files as a table, no more")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"there is no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    if not options.here:
        run_all(options)
        return
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; --device cpu --tiny rehearses without one")
    run_part(options.parts, options)


if __name__ == "__main__":
    main()

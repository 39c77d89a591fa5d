"""Measures Luthier on this machine's NVIDIA GPU, and prints one table of Markdown.

    python3 gpu_kit.py

It takes five minutes and needs PyTorch 2.11 for CUDA, torchvision, NumPy and Pillow; no Rust, no network. PyTorch's
libtorch is the one that Luthier runs on. Everything that it writes goes to a temporary folder.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torchvision
from PIL import Image

HERE = Path(__file__).resolve().parent
TORCH = Path(torch.__file__).parent

# Images a call, Luthier's default on CUDA.
BATCH = 128
# Bytes that are left free when a lack of memory is provoked: a CUDA context, the weights and a small batch.
LEFT_FREE = 1800 << 20

# Mean and standard deviation of ImageNet, by colour.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

ROUNDS = 5


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the kit itself [%(default)s]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads that decode [%(default)s]")
    parser.add_argument("--small", type=int, default=4000, help="photographs of 640 × 480 pixels [%(default)s]")
    parser.add_argument("--large", type=int, default=256, help="photographs of 12 megapixels [%(default)s]")
    parser.add_argument("--weights", default="untrained", help="a file of weights, for the comparison with the CPU")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which needs a C compiler")
    return parser.parse_args()


class Kit:
    """The programs, on one device."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        """Everything is written below `work`."""
        self.options, self.work = options, work
        self.device: str = options.device
        self.is_cuda = self.device.startswith("cuda")
        self.precisions = ("fp32", "bf16", "fp16") if self.is_cuda else ("fp32",)
        self.fast = "fp16" if self.is_cuda else "fp32"
        self.batch = BATCH if self.is_cuda else 8
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")}
        self.environment["LD_LIBRARY_PATH"] = f"{TORCH / 'lib'}"

    def run(self, program: str, *args: object) -> subprocess.CompletedProcess[str]:
        """Runs a program of the kit to its end."""
        command = [HERE / "bin" / program, *map(str, args)]
        done = subprocess.run(
            command, env=self.environment, cwd=self.work, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    @contextlib.contextmanager
    def asked(self) -> Iterator[Callable[..., float]]:
        """A running `luthier-compare`: the call sends a request, and returns images a second."""
        with subprocess.Popen(
            [HERE / "bin" / "luthier-compare"],
            env=self.environment,
            cwd=self.work,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:

            def ask(*fields: object) -> float:
                process.stdin.write("\t".join(map(str, fields)) + "\n")
                process.stdin.flush()
                first, second = process.stdout.readline().rstrip("\n").split("\t")
                if first == "error":
                    raise RuntimeError(second)
                return int(first) / float(second)

            yield ask
            process.stdin.close()


# A row of the table: what was measured, the figure, and a remark.
Row = tuple[str, str, str]


def operators(kit: Kit) -> Iterator[Row]:
    """Each kind of convolution beside float64 on the CPU."""
    test = "convolutions_on_cuda_are_exact" if kit.is_cuda else "convolutions_on_the_cpu_are_exact"
    for cells in _rows(kit, test):
        if len(cells) == 4 and cells[0] != "convolution":
            name, kernels, precision, error = cells
            yield f"{name}, {kernels}, {precision}", error, "‖y − float64‖ / ‖float64‖"


def features(kit: Kit) -> Iterator[Row]:
    """Features of an untrained network beside the CPU's, and what the size of the batch and a lack of memory do."""
    if not kit.is_cuda:
        return
    for cells in _rows(kit, "features_on_cuda_are_those_of_the_cpu"):
        if cells[0] != "kernels":
            kernels, precision, cosine, difference = cells
            yield f"untrained features, {kernels}, {precision}", cosine, f"1 − cosine, worst; largest difference {difference}"
    for precision, batch, bits, cosine in _rows(kit, "features_on_cuda_by_the_size_of_the_batch"):
        yield f"{batch} beside 128, {precision}", bits, f"1 − cosine {cosine}"
    _rows(kit, "memory_that_runs_out_on_cuda_halves_the_batch")
    yield "out of memory, in the library", "survived", "all but 512 MiB of the GPU taken, 512 images a batch"


def drawings(kit: Kit) -> Iterator[Row]:
    """The command line on the drawings: features of the device beside the CPU's in fp32."""
    expected = _extract(kit, "cpu", "fp32")
    for precision in kit.precisions:
        found = _extract(kit, kit.device, precision)
        yield f"{len(found)} drawings, {precision}", _nearness(found, expected), f"beside the CPU, weights {kit.options.weights}"
    if kit.is_cuda:
        free, _ = torch.cuda.mem_get_info(kit.device)
        taken = torch.empty(free - LEFT_FREE, dtype=torch.uint8, device=kit.device)
        try:
            found = _extract(kit, kit.device, "fp32", "--batch", 1024, expect="out of memory")
        finally:
            del taken
            torch.cuda.empty_cache()
        yield "out of memory, in the command", _nearness(found, expected), f"{LEFT_FREE >> 20} MiB free, 1,024 images a batch"


def network(kit: Kit) -> Iterator[Row]:
    """Decoded images to features, interleaved with PyTorch."""
    torch.set_num_threads(kit.options.threads)
    repetitions = 400 if kit.is_cuda else 2
    peers = {"PyTorch eager": _peer(kit, False)}
    if not kit.options.no_compile:
        peers["torch.compile"] = _peer(kit, True)
    found: dict[str, list[float]] = {}
    with kit.asked() as ask, _memory(kit) as memory:
        for _ in range(ROUNDS):
            for name, peer in peers.items():
                found.setdefault(f"{name}, {kit.fast}", []).append(_rate(peer, kit.batch, repetitions // 4 or 1))
            for precision in kit.precisions:
                for threads in sorted({1, kit.options.threads}) if precision == kit.fast else [kit.options.threads]:
                    rate = ask("network", kit.device, precision, kit.batch, threads, repetitions)
                    found.setdefault(f"Luthier, {precision}, {_count(threads)}", []).append(rate)
    for name, rates in found.items():
        yield f"network, {name}", _images(rates), f"pixels in memory to features there, {kit.batch} a batch"
    if kit.is_cuda:
        yield "memory of the GPU, all of these together", f"{max(memory, default=0)} MiB", "the most that nvidia-smi saw"


def photographs(kit: Kit) -> Iterator[Row]:
    """Files to features, and decoding alone."""
    for name, size, n in (("640 × 480", (640, 480), kit.options.small), ("12 megapixels", (4000, 3000), kit.options.large)):
        folder = kit.work / name.replace(" ", "")
        files = photographs_of(folder, size, min(n, 200 if size[0] < 1000 else 16))
        repeats = max(1, n // len(files))
        kilobytes = sum(file.stat().st_size for file in files) // len(files) // 1000
        with kit.asked() as ask:
            threads = kit.options.threads
            request = ("extract", kit.device, kit.fast, threads, repeats, folder)
            rates = [ask(*request) for _ in range(ROUNDS)]
            yield f"extract, {name}, {kit.fast}, {_count(threads)}", _images(rates), f"JPEG of {kilobytes} kB"
            for count in sorted({1, threads}):
                rates = [ask("decode", "scaled", count, *files * (repeats if count > 1 else 1)) for _ in range(ROUNDS)]
                yield f"decoding alone, {name}, {_count(count)}", _images(rates), ""


def cold(kit: Kit) -> Iterator[Row]:
    """One photograph, from the start of the process to its features on the disk."""
    folder = kit.work / "one"
    photographs_of(folder, (640, 480), 1)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        kit.run("luthier", "extract", "--quiet", "--unlabelled", folder, *_where(kit, kit.device, kit.fast))
        seconds.append(time.perf_counter() - start)
    yield "one photograph, cold", f"{median(seconds):.2f} s", f"{min(seconds):.2f} to {max(seconds):.2f}"


def _rows(kit: Kit, test: str) -> list[list[str]]:
    """What a test prints: rows of Markdown."""
    done = kit.run("luthier-extract-tests", test, "--include-ignored", "--nocapture", "--test-threads", 1)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    if " 1 passed" not in done.stdout:
        raise RuntimeError(f"{test}: expected one test, found\n{done.stdout}")
    return rows


def _where(kit: Kit, device: str, precision: str) -> list[object]:
    number = len(list(kit.work.glob("cache-*")))
    words = ["--device", device, "--precision", precision, "--threads", kit.options.threads]
    return [*words, "--weights", kit.options.weights, "--cache-dir", kit.work / f"cache-{number}", "--output-dir", kit.work / "features"]


def _extract(kit: Kit, device: str, precision: str, *more: object, expect: str = "") -> np.ndarray:
    """Features of the drawings, each time into a new cache. `expect` must be among the messages."""
    train, test = HERE / "drawings" / "train", HERE / "drawings" / "test"
    done = kit.run("luthier", "extract", "--train-dir", train, "--test-dir", test, *_where(kit, device, precision), *more)
    if expect not in done.stderr:
        raise RuntimeError(f"expected {expect!r} among the messages, found\n{done.stderr}")
    tables = [np.load(kit.work / "features" / f"{split}_features.npy") for split in ("train", "test")]
    return np.concatenate(tables).astype(np.float64)


def _nearness(found: np.ndarray, expected: np.ndarray) -> str:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = 1 - (found * expected).sum(axis=1) / lengths
    return f"1 − cosine: worst {cosine.max():.1e}, mean {cosine.mean():.1e}"


def _peer(kit: Kit, is_compiled: bool) -> Callable[[], torch.Tensor]:
    """torchvision's ResNet-50, from decoded pixels in memory to features there."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None).eval()
    network.fc = torch.nn.Identity()
    dtype = torch.float16 if kit.is_cuda else torch.float32
    network = network.to(kit.device, dtype, memory_format=torch.channels_last)
    network = torch.compile(network) if is_compiled else network
    pixels = torch.randint(0, 256, (kit.batch, 3, 224, 224), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    pixels = pixels.pin_memory() if kit.is_cuda else pixels
    mean, std = (torch.tensor(values, device=kit.device).view(1, 3, 1, 1) for values in (MEAN, STD))

    @torch.inference_mode()
    def run() -> torch.Tensor:
        x = pixels.to(kit.device, non_blocking=True)
        y = network(((x / 255 - mean) / std).to(dtype)).float()
        return y.to("cpu", non_blocking=True)

    run()
    return run


def _rate(peer: Callable[[], torch.Tensor], batch: int, calls: int) -> float:
    """Images a second. The calls are not waited for one by one, but for the last."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    peer()
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        peer()
    synchronize()
    return calls * batch / (time.perf_counter() - start)


@contextlib.contextmanager
def _memory(kit: Kit) -> Iterator[list[int]]:
    """MiB of the GPU in use, seen five times a second."""
    seen: list[int] = []
    is_over = threading.Event()

    def look() -> None:
        number = kit.device.partition(":")[2] or "0"
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", number]
        while not is_over.wait(0.2):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seen.extend(int(line) for line in done.stdout.split() if line.isdigit())

    thread = threading.Thread(target=look)
    if kit.is_cuda:
        thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        if kit.is_cuda:
            thread.join()


def photographs_of(folder: Path, size: tuple[int, int], n: int) -> list[Path]:
    """Makes JPEGs with shapes and noise, which cost what photographs do."""
    folder.mkdir()
    files = [folder / f"{number:04}.jpg" for number in range(n)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(_photograph, files, [size] * n, range(n)))
    return files


def _photograph(file: Path, size: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = random.integers(-14, 15, (size[1], size[0], 1), dtype=np.int16)
    pixels = (np.asarray(shapes, dtype=np.int16) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, quality=88)


def _images(rates: list[float]) -> str:
    return f"{median(rates):,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f})"


def _count(threads: int) -> str:
    return f"{threads} threads" if threads > 1 else "one thread"


def _machine(kit: Kit) -> str:
    cpu = "a processor"
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        cpu = found.group(1) if found else cpu
    gpu = "no GPU"
    if kit.is_cuda:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return f"{gpu}; {cpu}, {os.cpu_count()} cores; PyTorch {torch.__version__}; Python {sys.version.split()[0]}"


def main() -> int:
    """Returns the exit status: 1 if something was not measured."""
    options = arguments()
    failed = []
    with tempfile.TemporaryDirectory(prefix="luthier gpu kit ") as work:
        kit = Kit(options, Path(work))
        print(f"{_machine(kit)}\n\n| what | figure | remark |\n|---|---|---|", flush=True)
        for section in (operators, features, drawings, network, photographs, cold):
            try:
                for row in section(kit):
                    print(f"| {' | '.join(row)} |", flush=True)
            except Exception as error:  # what else can be measured is worth having
                failed.append(section.__name__)
                print(f"{section.__name__}: {error}", file=sys.stderr, flush=True)
    if failed:
        print(f"error: not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The peers: the same ResNet-50 by PyTorch, ONNX Runtime and OpenVINO, and decoding by Pillow and
libjpeg-turbo.

Each network takes `[8, 3, 224, 224]`, normalized before the timing and in the layout and number format that suits it
best, to features `[8, 2048]`. Each is imported where it is used: a machine with a GPU may have no more than PyTorch.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch._inductor.config
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms

from measure import Turn
from problem import Problem

SIDE = 224
BATCH = 8
CUDA_BATCH = 128
PIPELINE_BATCH = 32
# Of ImageNet, by colour.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# The cosine between a peer's features and those of PyTorch in fp32 that shows it to be the same network.
COSINE = {"fp32": 0.99999, "bf16": 0.98, "fp16": 0.999, "int8": 0.95}

TRANSFORM = transforms.Compose(
    [transforms.Resize((SIDE, SIDE)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
)

# Lets torch.compile take the weights for constants, fold batch normalization and pack them for oneDNN.
torch._inductor.config.freezing = True


def random_weights(path: Path) -> Path:
    """Writes torchvision's ResNet-50 as it is initialized with seed 0, unless it is there: speed asks for no more."""
    if not path.exists():
        torch.manual_seed(0)
        partial = path.with_name(path.name + ".partial")
        save_file(torchvision.models.resnet50(weights=None).state_dict(), partial)
        partial.rename(path)
    return path


def resnet50(weights: Path) -> torch.nn.Module:
    """torchvision's ResNet-50 with these weights, without its classifier."""
    network = torchvision.models.resnet50(weights=None)
    missing, unexpected = network.load_state_dict(load_file(weights), strict=False)
    missing = [name for name in missing if not name.startswith("fc.") and not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        found = f"{len(missing)} tensors missing and {len(unexpected)} unknown"
        raise Problem(f"{weights}: expected torchvision's ResNet-50, found {found}")
    network.fc = torch.nn.Identity()
    return network.eval()


def batch(files: list[Path]) -> torch.Tensor:
    """The first photos as the networks take them, f32 `[8, 3, 224, 224]`."""
    return torch.stack([_pixels(files[i % len(files)]) for i in range(BATCH)])


def _pixels(file: Path) -> torch.Tensor:
    with Image.open(file) as image:
        return TRANSFORM(image.convert("RGB"))


Network = Callable[[], np.ndarray | torch.Tensor]


def networks(weights: Path, x: torch.Tensor, threads: int, work: Path) -> dict[str, dict[str, Network]]:
    """For each number format the peers by name, each a call that takes `x` to features."""
    torch.set_num_threads(threads)
    nchw = resnet50(weights)
    nhwc = resnet50(weights).to(memory_format=torch.channels_last)
    x_nhwc = x.to(memory_format=torch.channels_last)
    bf16 = resnet50(weights).to(torch.bfloat16, memory_format=torch.channels_last)
    x_bf16 = x_nhwc.to(torch.bfloat16)
    compiled, compiled_bf16 = torch.compile(nhwc), torch.compile(bf16)
    onnx = work / "resnet50.onnx"
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(nchw, (x,), onnx, input_names=["x"], output_names=["y"], dynamo=False)
    return {
        "fp32": {
            "PyTorch eager, NCHW": lambda: nchw(x),
            "PyTorch eager, channels_last": lambda: nhwc(x_nhwc),
            "torch.compile, frozen": lambda: compiled(x_nhwc),
            "ONNX Runtime": _onnx_runtime(onnx, x.numpy(), threads),
            "OpenVINO": _openvino(onnx, x.numpy(), threads, "f32"),
        },
        "bf16": {
            "torch.compile, frozen, bf16": lambda: compiled_bf16(x_bf16),
            "OpenVINO, bf16": _openvino(onnx, x.numpy(), threads, "bf16"),
        },
        "int8": _openvino_int8(onnx, x.numpy(), threads),
    }


def _onnx_runtime(onnx: Path, x: np.ndarray, threads: int) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def _openvino(onnx: Path, x: np.ndarray, threads: int, precision: str) -> Network:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(core.read_model(onnx), "CPU", settings).create_infer_request()
    return lambda: request.infer({0: x})[0]


def _openvino_int8(onnx: Path, x: np.ndarray, threads: int) -> dict[str, Network]:
    """Quantized by NNCF with the batch as its calibration set: as one batch, and as requests of one image at once."""
    import nncf
    import openvino

    core = openvino.Core()
    model = nncf.quantize(core.read_model(onnx), nncf.Dataset([x]), preset=nncf.QuantizationPreset.MIXED)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    model.reshape([1, *x.shape[1:]])
    queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": "THROUGHPUT"}))
    rows = np.zeros((len(x), 2048), np.float32)

    def keep(done: openvino.InferRequest, place: int) -> None:
        rows[place] = done.get_output_tensor(0).data[0]

    queue.set_callback(keep)

    def throughput() -> np.ndarray:
        for place in range(len(x)):
            queue.start_async({0: x[place : place + 1]}, place)
        queue.wait_all()
        return rows

    return {"OpenVINO, int8": lambda: request.infer({0: x})[0], "OpenVINO, int8, throughput mode": throughput}


def cuda_network(weights: Path, x: torch.Tensor) -> Network:
    """torch.compile in fp16 on CUDA: decoded pixels in the computer's memory to features there, 128 a call."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    pixels = ((x * std + mean) * 255).round().to(torch.uint8).repeat(CUDA_BATCH // BATCH, 1, 1, 1)
    pixels = pixels.contiguous(memory_format=torch.channels_last).pin_memory()
    mean, std = mean.cuda(), std.cuda()
    network = torch.compile(resnet50(weights).to("cuda", torch.float16, memory_format=torch.channels_last))

    def run() -> torch.Tensor:
        y = (pixels.cuda(non_blocking=True) / 255 - mean) / std
        return network(y.to(torch.float16)).float().cpu()  # this copy waits until the device has finished

    return run


def check(features: np.ndarray | torch.Tensor, expected: torch.Tensor, name: str, precision: str) -> None:
    """Makes sure that a peer computes the same network: each image's features point the same way."""
    y = torch.as_tensor(features).float()
    cosine = torch.nn.functional.cosine_similarity(y[: len(expected)], expected).min().item()
    if not cosine >= COSINE[precision]:
        raise Problem(f"{name}: expected a cosine of {COSINE[precision]} with PyTorch's features, found {cosine:.6f}")


def repeated(network: Network, n_images: int) -> Callable[[int], Turn]:
    """So many calls of a network, each of `n_images`."""

    @torch.inference_mode()
    def run(repetitions: int) -> Turn:
        start = time.perf_counter()
        for _ in range(repetitions):
            network()
        return Turn(repetitions * n_images, time.perf_counter() - start)

    return run


def pillow_full(files: list[Path]) -> None:
    """Decodes every pixel, and resizes."""
    for file in files:
        with Image.open(file) as image:
            image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def pillow_draft(files: list[Path]) -> None:
    """Decodes at 1/2, 1/4 or 1/8 if the photo then still has 512 × 512 pixels, and resizes."""
    for file in files:
        with Image.open(file) as image:
            image.draft("RGB", (512, 512))
            image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def turbo_full(files: list[Path]) -> None:
    """Decodes every pixel by libjpeg-turbo without Pillow's reading around it, and resizes."""
    import simplejpeg

    for file in files:
        pixels = simplejpeg.decode_jpeg(file.read_bytes())
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def turbo_scaled(files: list[Path]) -> None:
    """The same at the smallest of libjpeg-turbo's scales that leaves 512 × 512 pixels."""
    import simplejpeg

    for file in files:
        pixels = simplejpeg.decode_jpeg(file.read_bytes(), min_height=512, min_width=512)
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


@torch.inference_mode()
def pipeline(network: torch.nn.Module, files: list[Path]) -> np.ndarray:
    """Files to features `[n, 2048]` as one writes it with torchvision: decode 32, then run them through the network."""
    rows = []
    for start in range(0, len(files), PIPELINE_BATCH):
        x = torch.stack([_pixels(file) for file in files[start : start + PIPELINE_BATCH]])
        rows.append(network(x.to(memory_format=torch.channels_last)).numpy())
    return np.concatenate(rows)

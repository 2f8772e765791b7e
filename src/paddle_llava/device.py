"""Which device runs, and which number formats it can run in."""

from __future__ import annotations

import os

from paddle_llava.errors import LlavaError, did_you_mean

DTYPES = ("float32", "bfloat16", "float16")

# What PaddlePaddle's NPU plug-in wants set before Paddle starts, from its LLaVA guide.
NPU_ENVIRONMENT = {
    "FLAGS_use_stride_kernel": "0",
    "FLAGS_npu_storage_format": "0",
    "FLAGS_npu_jit_compile": "1",
    "FLAGS_npu_scale_aclnn": "True",
    "FLAGS_npu_split_aclnn": "True",
    "CUSTOM_DEVICE_BLACK_LIST": "set_value,set_value_with_tensor",
}


def available_devices() -> list[str]:
    """`cpu`, then what this Paddle was built or extended for: `gpu`, `xpu`, `npu`, ..."""
    import paddle

    devices = ["cpu"]
    if paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        devices.append("gpu")
    if paddle.device.is_compiled_with_xpu():
        devices.append("xpu")
    return devices + [d for d in paddle.device.get_all_custom_device_type() if d not in devices]


def select_device(name: str | None = None) -> str:
    """Make `name` (`cpu`, `gpu`, `gpu:1`, `npu`, ...; None: the best there is) Paddle's device; returns its name.

    Raises `LlavaError` when this Paddle cannot run on it.
    """
    kind, _, index = (name or "").partition(":")
    kind = {"cuda": "gpu"}.get(kind, kind)
    if kind == "npu":
        for variable, value in NPU_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
    if index and not index.isdigit():
        raise LlavaError(f"--device {name!r}: the part after ':' must be a device number, as in gpu:0")
    import paddle

    devices = available_devices()
    if not kind:
        kind = next((d for d in ("gpu", "npu", "xpu") if d in devices), "cpu")
    if kind == "npu" and "npu" not in devices:
        raise LlavaError(
            "device npu: this Paddle has no NPU plug-in; install paddle-custom-npu for your CANN version "
            "(see PaddleCustomDevice/backends/npu), or use --device cpu"
        )
    if kind == "gpu" and "gpu" not in devices:
        raise LlavaError(
            "device gpu: this Paddle sees no GPU; install paddlepaddle-gpu for your CUDA version and check "
            "nvidia-smi, or use --device cpu"
        )
    if kind not in devices:
        near = did_you_mean(kind, ["cpu", "gpu", "npu", "xpu"])
        raise LlavaError(f"device {name!r} is not available here{near}; available: {', '.join(devices)}")
    try:
        paddle.set_device(f"{kind}:{index}" if index and kind != "cpu" else kind)
    except (ValueError, RuntimeError) as error:
        raise LlavaError(f"device {name!r}: {str(error).strip().splitlines()[-1]}") from None
    return kind


def known_dtype(requested: str) -> str:
    """The full name of a dtype. Raises `LlavaError` for a name that is none."""
    name = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(requested, requested)
    if name not in DTYPES:
        raise LlavaError(f"dtype {requested!r} is not one of {', '.join(DTYPES)}{did_you_mean(requested, DTYPES)}")
    return name


def compute_dtype(requested: str) -> tuple[str, str | None]:
    """The dtype to compute in on the current device, and a sentence when it is not the requested one.

    Paddle's CPU build has no matrix product for 16-bit floats (and its `is_bfloat16_supported` says otherwise), so
    the CPU computes in float32. Raises `LlavaError` for a name that is no dtype.
    """
    name = known_dtype(requested)
    if name == "float32":
        return name, None
    import paddle

    device = paddle.get_device().split(":")[0]
    if device == "cpu":
        return "float32", f"{name} has no matrix product on the CPU in Paddle; computing in float32"
    if device == "gpu" and name == "bfloat16" and paddle.device.cuda.get_device_capability()[0] < 8:
        return "float16", "this GPU is older than Ampere and has no bfloat16; computing in float16"
    return name, None


def default_dtype() -> str:
    """What a chat computes in unless told: float32 on the CPU, else bfloat16, or float16 where that is missing."""
    return compute_dtype("bfloat16")[0]

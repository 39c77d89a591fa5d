use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use luthier_artifact::UnknownName;

use super::bridge;
use crate::{Error, Result};

/// Where the network runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by number.
    Cuda(usize),
    /// Apple's GPU.
    Mps,
}

impl Device {
    /// The best device there is: CUDA, else Apple's GPU, else the processor. A GPU that cannot compute, because libtorch has
    /// no code for it or its memory is full, is left out with a warning.
    pub fn best() -> Self {
        static CUDA: OnceLock<bool> = OnceLock::new();
        let has_cuda = || match check_cuda(0) {
            Ok(()) => true,
            Err(message) => {
                if cuda_is_there().is_ok() && tch::Cuda::device_count() > 0 {
                    tracing::warn!("device cuda:0 is left out: {message}");
                }
                false
            }
        };
        if *CUDA.get_or_init(has_cuda) {
            Device::Cuda(0)
        } else if tch::utils::has_mps() {
            Device::Mps
        } else {
            Device::Cpu
        }
    }

    /// What kind of device it is: `cpu`, `cuda` or `mps`. Devices of one kind share cached
    /// features.
    pub fn kind(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Mps => "mps",
        }
    }

    /// The default number of images in a batch.
    ///
    /// It is 1 on the CPU: one image more costs one image more. A long run takes several images at
    /// once if that changes no bit. In int8 it never does: there a batch is as large as is fastest,
    /// and need not be full. On CUDA larger batches are 4 % faster at most, and one image costs as much as a batch.
    pub(crate) fn batch(self, precision: Precision) -> usize {
        match self {
            Device::Cpu if precision == Precision::Int8 => 8,
            Device::Cpu => 1,
            Device::Cuda(_) => 128,
            Device::Mps => 32,
        }
    }

    /// Checks that the device is there and can compute in `precision`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is not there, [`Error::Precision`] if it lacks the
    /// instructions.
    pub fn check(self, precision: Precision) -> Result<()> {
        let missing = |message: &str| {
            Err(Error::Device {
                device: self.to_string(),
                message: message.to_owned(),
            })
        };
        match self {
            Device::Cpu => check_on_cpu(precision, !bridge::has_onednn() || bridge::onednn_has_bf16()),
            Device::Mps if !tch::utils::has_mps() => missing("no Apple GPU found"),
            Device::Cuda(n) if let Err(message) = check_cuda(n) => missing(&message),
            Device::Cuda(_) | Device::Mps if precision == Precision::Int8 => Err(Error::Precision {
                device: self.to_string(),
                precision: precision.to_string(),
                message: "no int8 on GPUs, expected fp32, bf16 or fp16 (or --device cpu)".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn torch(self) -> tch::Device {
        match self {
            Device::Cpu => tch::Device::Cpu,
            Device::Cuda(n) => tch::Device::Cuda(n),
            Device::Mps => tch::Device::Mps,
        }
    }
}

/// Checks that a processor can compute in `precision`.
///
/// oneDNN's convolutions in bf16 need AVX-512 (bw, vl and dq), AVX-NE-CONVERT, or Arm's bf16.
/// libtorch's plain convolutions do without, but they are slower than in fp32, and their last bits
/// depend on the number of threads: they are no way out.
fn check_on_cpu(precision: Precision, has_bf16: bool) -> Result<()> {
    let lacking = |message: &str| {
        Err(Error::Precision {
            device: Device::Cpu.to_string(),
            precision: precision.to_string(),
            message: message.to_owned(),
        })
    };
    match precision {
        Precision::Bf16 if !has_bf16 => {
            lacking("this processor has no bf16 instructions, which --precision bf16 needs")
        }
        Precision::Int8 if !has_int8() => lacking("no VNNI instructions here, which --precision int8 needs"),
        Precision::Fp16 => lacking("no fp16 on the CPU, expected fp32, bf16 or int8"),
        _ => Ok(()),
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            other => f.write_str(other.kind()),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    /// Reads `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let expected = || format!("expected auto, cpu, cuda, cuda:N or mps, found {text}");
        match text {
            "auto" => Ok(Device::best()),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            "mps" => Ok(Device::Mps),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(expected),
        }
    }
}

/// Whether this libtorch comes with its parts for CUDA. They are loaded when they are first asked for: that takes a second,
/// which `--device cpu` is spared. libtorch remembers that there are none if it is asked about CUDA before, as its own
/// convolutions do: a program that computes with them on the CPU first cannot use a GPU later.
fn cuda_is_there() -> std::result::Result<(), String> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let load = || match bridge::load_cuda() {
        Ok(true) => Ok(()),
        Ok(false) => Err("this libtorch has no CUDA (`cargo xtask setup --cuda`, then build again)".to_owned()),
        Err(error) => Err(format!("CUDA does not load: {error}")),
    };
    LOADED.get_or_init(load).clone()
}

/// Checks that a GPU computes, in the words of the driver or of libtorch if it does not.
fn check_cuda(n: usize) -> std::result::Result<(), String> {
    cuda_is_there()?;
    let compute = || {
        let x = tch::Tensor::f_ones([1], (tch::Kind::Float, tch::Device::Cuda(n)))?;
        x.f_add(&x)?.f_to_device(tch::Device::Cpu)
    };
    // Of a driver that is too old, or of a GPU that this libtorch has no code for, the count does not tell.
    compute()
        .map_err(Error::from)
        .map(drop)
        .map_err(|error| match tch::Cuda::device_count() {
            found if found > 0 && n as i64 >= found => format!("found {found} CUDA devices, numbered from 0"),
            _ => error.to_string(),
        })
}

/// Whether cuDNN is there to compute convolutions.
pub(super) fn has_cudnn() -> bool {
    cuda_is_there().is_ok() && tch::Cuda::cudnn_is_available()
}

/// The number format of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[derive(strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "lowercase", parse_err_ty = UnknownName, parse_err_fn = unknown_precision)]
pub enum Precision {
    /// 32-bit floating point.
    Fp32,
    /// bfloat16: up to twice as fast on processors that multiply it in hardware. The CPU needs
    /// AVX-512 or AVX-NE-CONVERT for it.
    Bf16,
    /// 16-bit floating point, on GPUs only.
    Fp16,
    /// 8-bit integers, on processors with VNNI instructions.
    Int8,
}

fn unknown_precision(found: &str) -> UnknownName {
    UnknownName::of::<Precision>("precision", found)
}

impl Precision {
    /// The fastest format that a device has in hardware, of those that are as accurate as fp32.
    pub fn best(device: Device) -> Self {
        match device {
            Device::Cpu if has_int8() => Precision::Int8,
            Device::Cpu if multiplies_bf16() && bridge::onednn_has_bf16() => Precision::Bf16,
            Device::Cuda(_) => Precision::Fp16,
            Device::Cpu | Device::Mps => Precision::Fp32,
        }
    }

    pub(crate) fn kind(self) -> tch::Kind {
        match self {
            // In int8, of what is not an integer.
            Precision::Fp32 | Precision::Int8 => tch::Kind::Float,
            Precision::Bf16 => tch::Kind::BFloat16,
            Precision::Fp16 => tch::Kind::Half,
        }
    }
}

/// Whether this processor sums up products of 8-bit integers in one instruction (VNNI), and libtorch has convolutions that
/// do. Without the instruction oneDNN's sums may overflow.
fn has_int8() -> bool {
    #[cfg(target_arch = "x86_64")]
    return (std::arch::is_x86_feature_detected!("avx512vnni") || std::arch::is_x86_feature_detected!("avxvnni"))
        && bridge::has_int8()
        && !onednn_is_held_back();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Whether the user has oneDNN do without VNNI: the names of instruction sets that lack it.
#[cfg(target_arch = "x86_64")]
fn onednn_is_held_back() -> bool {
    onednn_limit().is_some_and(|limit| match limit.to_uppercase().as_str() {
        "SSE41" | "AVX" | "AVX2" | "AVX512_CORE" => true,
        "AVX2_VNNI" | "AVX2_VNNI_2" => !std::arch::is_x86_feature_detected!("avxvnni"),
        _ => false,
    })
}

/// The instructions by which oneDNN chooses how it sums up: with others, the last bits of features differ.
pub(crate) fn instructions() -> String {
    #[cfg(target_arch = "x86_64")]
    let found = {
        let features = raw_cpuid::CpuId::new().get_extended_feature_info();
        let has_amx = features.is_some_and(|features| features.has_amx_bf16());
        if has_amx {
            "amx"
        } else if std::arch::is_x86_feature_detected!("avx512bf16") {
            "avx512 with bf16"
        } else if std::arch::is_x86_feature_detected!("avx512bw") {
            "avx512"
        } else if std::arch::is_x86_feature_detected!("avx2") {
            "avx2"
        } else {
            "sse"
        }
    };
    #[cfg(target_arch = "aarch64")]
    let found = if multiplies_bf16() { "neon with bf16" } else { "neon" };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found = std::env::consts::ARCH;
    match onednn_limit() {
        Some(limit) => format!("{found}, at most {}", limit.to_lowercase()),
        None => found.to_owned(),
    }
}

/// The instruction set beyond which the user has oneDNN not go.
fn onednn_limit() -> Option<String> {
    let limit = std::env::var("ONEDNN_MAX_CPU_ISA").or_else(|_| std::env::var("DNNL_MAX_CPU_ISA"));
    limit.ok()
}

/// Whether this processor multiplies bf16 in hardware. oneDNN computes with bf16 on others too, but
/// no faster.
fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for device in [Device::Cpu, Device::Cuda(3), Device::Mps] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!(
            "cuda:x".parse::<Device>(),
            Err("expected auto, cpu, cuda, cuda:N or mps, found cuda:x".to_owned())
        );
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp16, Precision::Int8] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        assert_eq!(
            "int4".parse::<Precision>().unwrap_err().to_string(),
            r#"precision is "int4", expected fp32, bf16, fp16 or int8"#
        );
    }

    #[test]
    fn a_format_that_the_processor_lacks_is_refused_with_the_way_out() {
        for (precision, has_bf16, expected) in [
            (
                Precision::Bf16,
                false,
                "device cpu: this processor has no bf16 instructions, which --precision bf16 needs",
            ),
            (
                Precision::Fp16,
                true,
                "device cpu: no fp16 on the CPU, expected fp32, bf16 or int8",
            ),
        ] {
            let error = check_on_cpu(precision, has_bf16).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert_eq!(
                error.hint().unwrap(),
                format!("use --precision fp32 (train again with it, if the model asks for {precision})")
            );
        }
        check_on_cpu(Precision::Bf16, true).unwrap();
        check_on_cpu(Precision::Fp32, false).unwrap();
    }
}

use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::bridge::{self, Activation, PackedConv, Readback, Shape};
use super::device;
use super::gpu::Accelerator;
use super::int8::{Int8Network, Scales};
use super::parameters::{ParameterShape, Parameters};
use super::winograd::{self, WinogradConv};
use crate::{Device, Error, InputSize, Pooling, Precision, Result};

/// The number of features of an image in one view: the channels before global average pooling.
pub const WIDTH: usize = 2048;

/// Added to the variance in every batch norm, as in torchvision.
const EPSILON: f64 = 1e-5;

/// The mean and standard deviation of red, green and blue (0 to 1) on ImageNet. The weights were
/// trained on pixels that were normalized with them.
pub(crate) const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub(crate) const STANDARD_DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// The number of bottleneck blocks in each of the four stages, and the channels inside them. The
/// output of a block has four times as many channels.
const STAGES: [(usize, i64); 4] = [(3, 64), (4, 128), (6, 256), (3, 512)];
const EXPANSION: i64 = 4;

/// The channels of an image.
const COLOURS: i64 = 3;

/// A convolution and the batch norm after it, by torchvision's names.
pub(crate) struct ConvNorm {
    conv: String,
    norm: String,
    /// Output channels, input channels, side of the kernel.
    pub(super) shape: [i64; 3],
    pub(super) stride: i64,
    /// Height and width of the input.
    pub(super) input_side: i64,
}

impl ConvNorm {
    /// torchvision's name of the convolution.
    pub(super) fn name(&self) -> &str {
        &self.conv
    }

    /// The number format of this convolution. In bf16 the first convolution stays in fp32, because
    /// all others build on its output. That costs 1 % of the time and removes four fifths of the
    /// error: 1 − cosine of features, the worst of five photographs, is 2.8e-4 instead of 1.4e-3.
    fn precision(&self, precision: Precision) -> Precision {
        match precision {
            Precision::Bf16 if self.shape[1] == COLOURS => Precision::Fp32,
            other => other,
        }
    }

    /// Whether Winograd's filtering computes this convolution. For its intermediate numbers bf16 is
    /// too coarse.
    fn is_winograd(&self, target: Target) -> bool {
        let [_, _, side] = self.shape;
        target.kernels == Kernels::OneDnn && target.precision == Precision::Fp32 && (side, self.stride) == (3, 1)
    }
}

/// The plan of one bottleneck block (He et al., 2015, arXiv:1512.03385), version 1.5: the 3 × 3
/// convolution has the stride.
pub(crate) struct Bottleneck {
    pub(super) convs: [ConvNorm; 3],
    pub(super) downsample: Option<ConvNorm>,
}

pub(super) fn stem(size: InputSize) -> ConvNorm {
    ConvNorm {
        conv: "conv1".to_owned(),
        norm: "bn1".to_owned(),
        shape: [64, COLOURS, 7],
        stride: 2,
        input_side: size.side() as i64,
    }
}

pub(crate) fn bottlenecks(size: InputSize) -> Vec<Bottleneck> {
    let mut blocks = Vec::new();
    let mut n_in = 64;
    // The stem and the pooling after it each halve the side.
    let mut side = size.side() as i64 / 4;
    for (stage, (n_blocks, n_mid)) in STAGES.into_iter().enumerate() {
        for block in 0..n_blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let prefix = format!("layer{}.{block}", stage + 1);
            let conv = |n: usize, shape, stride, input_side| ConvNorm {
                conv: format!("{prefix}.conv{n}"),
                norm: format!("{prefix}.bn{n}"),
                shape,
                stride,
                input_side,
            };
            let n_out = n_mid * EXPANSION;
            blocks.push(Bottleneck {
                convs: [
                    conv(1, [n_mid, n_in, 1], 1, side),
                    conv(2, [n_mid, n_mid, 3], stride, side),
                    conv(3, [n_out, n_mid, 1], 1, side / stride),
                ],
                downsample: (block == 0).then(|| ConvNorm {
                    conv: format!("{prefix}.downsample.0"),
                    norm: format!("{prefix}.downsample.1"),
                    shape: [n_out, n_in, 1],
                    stride,
                    input_side: side,
                }),
            });
            n_in = n_out;
            side /= stride;
        }
    }
    blocks
}

/// Name and shape of every parameter of ResNet-50 without its top.
pub(crate) fn parameter_shapes() -> Vec<ParameterShape> {
    let of = |plan: &ConvNorm| {
        let [n_out, n_in, side] = plan.shape;
        let conv = ParameterShape {
            name: format!("{}.weight", plan.conv),
            shape: vec![n_out, n_in, side, side],
        };
        let norm = ["weight", "bias", "running_mean", "running_var"].map(|part| ParameterShape {
            name: format!("{}.{part}", plan.norm),
            shape: vec![n_out],
        });
        std::iter::once(conv).chain(norm).collect::<Vec<_>>()
    };
    plans(InputSize::default()).flat_map(|plan| of(&plan)).collect()
}

/// Every convolution, in the order in which [`Network`] builds them.
fn plans(size: InputSize) -> impl Iterator<Item = ConvNorm> {
    let in_blocks = bottlenecks(size)
        .into_iter()
        .flat_map(|block| block.convs.into_iter().chain(block.downsample));
    std::iter::once(stem(size)).chain(in_blocks)
}

/// The library that computes the convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// libtorch's convolutions, with the activation as a step of its own.
    Plain,
    /// oneDNN's convolutions, fused with the activation and the residual sum.
    OneDnn,
    /// cuDNN's convolutions, fused with the activation and the residual sum.
    CuDnn,
}

impl Kernels {
    /// The fastest kernels that this libtorch has for a device.
    pub(crate) fn best(device: Device) -> Self {
        match device {
            Device::Cpu if bridge::has_onednn() => Kernels::OneDnn,
            Device::Cuda(_) if device::has_cudnn() => Kernels::CuDnn,
            _ => Kernels::Plain,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kernels::Plain => "plain",
            Kernels::OneDnn => "onednn",
            Kernels::CuDnn => "cudnn",
        }
    }
}

/// Where and how the network runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) kernels: Kernels,
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    /// Height and width of the images.
    pub(crate) size: InputSize,
    /// The number of images in every batch.
    pub(crate) batch: usize,
}

/// Weight and bias of a convolution with the batch norm folded in.
pub(crate) struct Folded {
    /// `[out, h, w, in]`, channels last. For Winograd's filtering `[36, out, in]`.
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl Folded {
    /// As the kernels take it.
    fn for_target(plan: &ConvNorm, parameters: &Parameters, target: Target) -> Self {
        let mut folded = Folded::new(plan, parameters);
        if plan.is_winograd(target) {
            folded.weight =
                winograd::transform_filters(&folded.weight, plan.shape[1] as usize, plan.input_side as usize);
        }
        folded
    }

    /// w' = w·γ/√(σ² + ε), b' = β − μ·γ/√(σ² + ε), computed in double precision.
    pub(super) fn new(plan: &ConvNorm, parameters: &Parameters) -> Self {
        let norm = |part: &str| parameters.get(&format!("{}.{part}", plan.norm));
        let (gamma, beta) = (norm("weight"), norm("bias"));
        let (mean, variance) = (norm("running_mean"), norm("running_var"));
        let factors: Vec<f64> = (gamma.iter().zip(variance))
            .map(|(&gamma, &variance)| f64::from(gamma) / (f64::from(variance) + EPSILON).sqrt())
            .collect();
        let bias = (beta.iter().zip(mean).zip(&factors))
            .map(|((&beta, &mean), factor)| (f64::from(beta) - f64::from(mean) * factor) as f32)
            .collect();
        let [_, n_in, side] = plan.shape.map(|length| length as usize);
        let area = side * side;
        let weight = parameters.get(&format!("{}.weight", plan.conv));
        let mut folded = Vec::with_capacity(weight.len());
        for (filter, factor) in weight.chunks_exact(n_in * area).zip(&factors) {
            for at in 0..area {
                let channels = filter[at..].iter().step_by(area);
                folded.extend(channels.map(|&weight| (f64::from(weight) * factor) as f32));
            }
        }
        Folded { weight: folded, bias }
    }
}

/// A convolution with the batch norm folded in, on the device and in the layout of its kernels.
#[derive(Debug)]
enum Conv {
    Plain(Unpacked),
    OneDnn(PackedConv),
    Winograd(WinogradConv),
    CuDnn(Unpacked),
}

/// A convolution in libtorch's own layout.
#[derive(Debug)]
struct Unpacked {
    weight: Tensor,
    bias: Tensor,
    stride: [i64; 2],
    padding: [i64; 2],
    /// Whether cuDNN has an engine for the convolution with what follows it, on this GPU, once it was tried.
    is_fused: Arc<OnceLock<bool>>,
}

impl Unpacked {
    fn share(&self) -> Self {
        Unpacked {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
            is_fused: self.is_fused.clone(),
            ..*self
        }
    }

    fn run(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let mut y = x.f_conv2d(&self.weight, Some(&self.bias), self.stride, self.padding, [1], 1)?;
        Ok(match activation {
            Activation::Relu => y.f_relu_()?,
            Activation::None => y,
        })
    }

    fn run_add_relu(&self, x: &Tensor, sum: &Tensor) -> Result<Tensor> {
        Ok(self.run(x, Activation::None)?.f_add(sum)?.f_relu_()?)
    }

    /// relu(convolution of x), or relu(sum + convolution of x), in one step.
    ///
    /// cuDNN does not have each of these in every format for every GPU: then the steps are computed one by one. It says the
    /// same when memory is short, but not of what it has computed before.
    fn run_cudnn(&self, x: &Tensor, sum: Option<&Tensor>) -> Result<Tensor> {
        let plain = || match sum {
            Some(sum) => self.run_add_relu(x, sum),
            None => self.run(x, Activation::Relu),
        };
        if self.is_fused.get() == Some(&false) {
            return plain();
        }
        let shape = Shape {
            stride: self.stride[0],
            padding: self.padding[0],
            groups: 1,
        };
        let error = match bridge::cudnn_convolution_relu(x, &self.weight, &self.bias, sum, shape) {
            Ok(y) => {
                self.is_fused.get_or_init(|| true);
                return Ok(y);
            }
            Err(error) if self.is_fused.get() == Some(&true) => return Err(error),
            Err(error) => error,
        };
        let y = plain()?;
        tracing::debug!("a convolution {:?} is not fused: {error}", self.weight.size());
        self.is_fused.get_or_init(|| false);
        Ok(y)
    }
}

impl Conv {
    fn new(plan: &ConvNorm, folded: Folded, target: Target) -> Result<Self> {
        if plan.is_winograd(target) {
            let conv = WinogradConv::new(&folded.weight, &folded.bias, plan.input_side as usize, target.batch)?;
            return Ok(Conv::Winograd(conv));
        }
        let place = |tensor: Tensor| -> Result<Tensor> {
            Ok(tensor
                .f_to_kind(plan.precision(target.precision).kind())?
                .f_to_device(target.device.torch())?)
        };
        let [n_out, n_in, side] = plan.shape;
        let weight = Tensor::f_from_slice(&folded.weight)?.f_reshape([n_out, side, side, n_in])?;
        let weight = place(weight)?.f_permute([0, 3, 1, 2])?;
        let bias = place(Tensor::f_from_slice(&folded.bias)?)?;
        let (stride, padding) = (plan.stride, side / 2);
        let unpacked = |bias| Unpacked {
            weight: weight.shallow_clone(),
            bias,
            stride: [stride; 2],
            padding: [padding; 2],
            is_fused: Arc::default(),
        };
        Ok(match target.kernels {
            Kernels::Plain => Conv::Plain(unpacked(bias)),
            Kernels::CuDnn => Conv::CuDnn(unpacked(bias)),
            Kernels::OneDnn => {
                let input = [target.batch as i64, n_in, plan.input_side, plan.input_side];
                let shape = Shape {
                    stride,
                    padding,
                    groups: 1,
                };
                Conv::OneDnn(PackedConv::new(&weight, bias, shape, input)?)
            }
        })
    }

    fn share(&self) -> Self {
        match self {
            Conv::Plain(conv) => Conv::Plain(conv.share()),
            Conv::OneDnn(conv) => Conv::OneDnn(conv.share()),
            Conv::Winograd(conv) => Conv::Winograd(conv.share()),
            Conv::CuDnn(conv) => Conv::CuDnn(conv.share()),
        }
    }

    fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match self {
            Conv::OneDnn(conv) => conv.run(x, activation),
            Conv::Winograd(conv) => {
                assert_eq!(activation, Activation::Relu, "what follows every 3 × 3 convolution");
                conv.run(x)
            }
            Conv::CuDnn(conv) if activation == Activation::Relu => conv.run_cudnn(x, None),
            Conv::Plain(conv) | Conv::CuDnn(conv) => conv.run(x, activation),
        }
    }

    /// relu(sum + convolution of x). The memory of `sum` may be reused.
    fn forward_add_relu(&self, x: &Tensor, sum: Tensor) -> Result<Tensor> {
        match self {
            Conv::OneDnn(conv) => conv.run_add_relu(x, sum),
            Conv::CuDnn(conv) => conv.run_cudnn(x, Some(&sum)),
            Conv::Plain(conv) => conv.run_add_relu(x, &sum),
            Conv::Winograd(_) => unreachable!("no 3 × 3 convolution ends a block"),
        }
    }
}

#[derive(Debug)]
struct Block {
    convs: [Conv; 3],
    downsample: Option<Conv>,
}

impl Block {
    fn share(&self) -> Self {
        Block {
            convs: self.convs.each_ref().map(Conv::share),
            downsample: self.downsample.as_ref().map(Conv::share),
        }
    }

    /// `see` is shown the activations inside the block, and its output.
    fn forward(&self, x: Tensor, see: &mut See<'_>) -> Result<Tensor> {
        let [first, second, third] = &self.convs;
        let y = first.forward(&x, Activation::Relu)?;
        see(&y)?;
        let y = second.forward(&y, Activation::Relu)?;
        see(&y)?;
        let shortcut = match &self.downsample {
            Some(conv) => {
                let shortcut = conv.forward(&x, Activation::None)?;
                see(&shortcut)?;
                shortcut
            }
            None => x,
        };
        let y = third.forward_add_relu(&y, shortcut)?;
        see(&y)?;
        Ok(y)
    }
}

/// Looks at an activation.
type See<'a> = dyn FnMut(&Tensor) -> Result<()> + 'a;

/// The layers, in numbers of one kind or the other.
#[derive(Debug)]
enum Layers {
    Float(FloatLayers),
    Int8(Int8Network),
}

#[derive(Debug)]
struct FloatLayers {
    pixels: Pixels,
    stem: Conv,
    /// The number format that the first convolution takes.
    stem_kind: Kind,
    blocks: Vec<Block>,
}

/// ResNet-50 without its top, for inference, batch norms folded, in channels-last layout.
///
/// Each thread has a [`share`](Network::share) of it.
#[derive(Debug)]
pub(crate) struct Network {
    target: Target,
    layers: Layers,
}

impl Network {
    /// `scales` are those of the activations, which int8 needs.
    pub(crate) fn new(parameters: &Parameters, target: Target, scales: Option<&Scales>) -> Result<Self> {
        // Folding reads every weight, on all cores. Packing is done by libtorch, on threads of its
        // own.
        let plans: Vec<ConvNorm> = plans(target.size).collect();
        let folded: Vec<Folded> = plans
            .par_iter()
            .map(|plan| Folded::for_target(plan, parameters, target))
            .collect();
        tch::no_grad(|| {
            // Each folded weight is dropped when it is packed, and the next uses its memory.
            let layers = match scales {
                Some(scales) => {
                    let blocks = bottlenecks(target.size);
                    let plan = (&plans[0], blocks.as_slice());
                    Layers::Int8(Int8Network::new(plan, folded.into_iter(), scales, target)?)
                }
                None => {
                    let convs = plans
                        .iter()
                        .zip(folded)
                        .map(|(plan, folded)| Conv::new(plan, folded, target));
                    let mut convs = convs.collect::<Result<Vec<_>>>()?.into_iter();
                    let mut next = || convs.next().expect("a convolution for each of the plan");
                    Layers::Float(FloatLayers {
                        pixels: Pixels::new(target.device, target.size)?,
                        stem: next(),
                        stem_kind: plans[0].precision(target.precision).kind(),
                        blocks: bottlenecks(target.size)
                            .iter()
                            .map(|plan| Block {
                                convs: [next(), next(), next()],
                                downsample: plan.downsample.as_ref().map(|_| next()),
                            })
                            .collect(),
                    })
                }
            };
            Ok(Network { target, layers })
        })
    }

    /// The same network for another thread: the weights are not copied.
    pub(crate) fn share(&self) -> Self {
        Network {
            target: self.target,
            layers: match &self.layers {
                Layers::Float(layers) => Layers::Float(FloatLayers {
                    pixels: layers.pixels.share(),
                    stem: layers.stem.share(),
                    stem_kind: layers.stem_kind,
                    blocks: layers.blocks.iter().map(Block::share).collect(),
                }),
                Layers::Int8(layers) => Layers::Int8(layers.share()),
            },
        }
    }

    /// The size of the images that it takes.
    pub(crate) fn size(&self) -> InputSize {
        self.target.size
    }

    /// Whether it computes with 8-bit integers.
    pub(crate) fn is_int8(&self) -> bool {
        matches!(self.layers, Layers::Int8(_))
    }

    /// Embeds RGB images on the CPU, `u8 [n, side, side, 3]`; the result is `f32 [n, poolings, 2048]` in C order.
    ///
    /// `n` is the batch that the network was built for. In int8 it can be any number.
    pub(crate) fn forward(&self, images: &[u8], poolings: &[Pooling]) -> Result<Vec<f32>> {
        self.forward_seen(images, poolings, &mut |_| Ok(()))
    }

    /// The same, and `see` is shown each activation, but in int8: the pooled output of the first convolution; then, of each block, the
    /// outputs of its first and second convolution, that of the projection if it has one, and its output.
    pub(crate) fn forward_seen(&self, images: &[u8], poolings: &[Pooling], see: &mut See<'_>) -> Result<Vec<f32>> {
        tch::no_grad(|| {
            let layers = match &self.layers {
                Layers::Int8(layers) => return layers.forward(images, poolings),
                Layers::Float(layers) => layers,
            };
            let x = layers.pixels.read(images)?;
            let x = layers.maps(&x, self.target.precision, see)?;
            features(&pooled(&x, poolings)?, poolings)
        })
    }

    /// The network on a device that is not the CPU, which makes features by these poolings.
    pub(crate) fn on_gpu(&self, poolings: &[Pooling]) -> OnGpu {
        OnGpu {
            network: self.share(),
            poolings: poolings.to_vec(),
        }
    }
}

impl FloatLayers {
    /// The last maps, `f32 [n, 2048, h, w]`, of normalized images, `f32 [n, side, side, 3]`.
    fn maps(&self, x: &Tensor, precision: Precision, see: &mut See<'_>) -> Result<Tensor> {
        let x = x.f_to_kind(self.stem_kind)?.f_permute([0, 3, 1, 2])?;
        let mut x = self.stem.forward(&x, Activation::Relu)?;
        x = x.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        see(&x)?;
        x = x.f_to_kind(precision.kind())?;
        for block in &self.blocks {
            x = block.forward(x, see)?;
        }
        Ok(x.f_to_kind(Kind::Float)?)
    }
}

/// A [`Network`] that a GPU computes.
pub(crate) struct OnGpu {
    network: Network,
    poolings: Vec<Pooling>,
}

/// Features on their way from a GPU.
pub(crate) enum Pending {
    Cuda(Readback),
    /// Apple's GPU, whose copies are waited for.
    Mps(Tensor),
}

impl Accelerator for OnGpu {
    type Images = Tensor;
    type Pending = Pending;

    fn size(&self) -> InputSize {
        self.network.size()
    }

    fn n_poolings(&self) -> usize {
        self.poolings.len()
    }

    fn images(&self, n: usize, fill: impl FnOnce(&mut [u8])) -> Result<Tensor> {
        let side = self.size().side();
        match self.network.target.device {
            Device::Cuda(_) => bridge::pinned(n, side, fill),
            Device::Cpu | Device::Mps => bridge::filled([n as i64, side as i64, side as i64, 3], fill),
        }
    }

    fn start(&self, images: &Tensor, first: usize, n: usize) -> Result<Pending> {
        let Target { device, precision, .. } = self.network.target;
        let Layers::Float(layers) = &self.network.layers else {
            unreachable!("no int8 on GPUs: Device::check");
        };
        tch::no_grad(|| {
            // Pinned memory waits for its copies before it is given out again; other memory does not.
            let is_pinned = matches!(device, Device::Cuda(_));
            let x = images.f_narrow(0, first as i64, n as i64)?;
            let x = x.f_to_device_(device.torch(), Kind::Uint8, is_pinned, false)?;
            let maps = layers.maps(&layers.pixels.normalize(&x)?, precision, &mut |_| Ok(()))?;
            let pooled = pooled(&maps, &self.poolings)?;
            Ok(match device {
                Device::Cuda(_) => Pending::Cuda(Readback::new(&pooled)?),
                Device::Cpu | Device::Mps => Pending::Mps(pooled),
            })
        })
    }

    fn finish(&self, pending: Pending) -> Result<Vec<f32>> {
        let pooled = match pending {
            Pending::Cuda(readback) => readback.wait()?,
            Pending::Mps(pooled) => pooled.f_to_device(tch::Device::Cpu)?,
        };
        let features = features(&pooled, &self.poolings)?;
        match features.iter().all(|feature| feature.is_finite()) {
            true => Ok(features),
            false => Err(Error::NotFinite {
                device: self.network.target.device.to_string(),
                precision: self.network.target.precision.to_string(),
            }),
        }
    }
}

/// What is averaged of maps `[n, 2048, h, w]`, which are not negative: `[n, poolings, 2048]`.
fn pooled(x: &Tensor, poolings: &[Pooling]) -> Result<Tensor> {
    let means = poolings.iter().map(|pooling| {
        let cubes = match pooling {
            Pooling::Mean => None,
            Pooling::Gem => Some(x.f_mul(x)?.f_mul_(x)?),
        };
        Ok((cubes.as_ref().unwrap_or(x)).f_mean_dim([2, 3].as_slice(), false, Kind::Float)?)
    });
    Ok(Tensor::f_stack(&means.collect::<Result<Vec<_>>>()?, 1)?)
}

/// The features `[n, poolings, 2048]` of what was averaged, which is on the CPU.
fn features(pooled: &Tensor, poolings: &[Pooling]) -> Result<Vec<f32>> {
    let mut features = vec![0.0; pooled.numel()];
    let n = features.len();
    pooled.f_contiguous()?.f_copy_data(&mut features, n)?;
    for (row, pooling) in features.chunks_exact_mut(WIDTH).zip(poolings.iter().cycle()) {
        if *pooling == Pooling::Gem {
            row.iter_mut().for_each(|feature: &mut f32| *feature = feature.cbrt());
        }
    }
    Ok(features)
}

/// Normalizes 8-bit pixels: (x / 255 − mean) / standard deviation.
#[derive(Debug)]
struct Pixels {
    size: InputSize,
    normalization: Normalization,
}

#[derive(Debug)]
enum Normalization {
    /// By a table for each channel. Its numbers are those of torchvision's `ToTensor` and `Normalize`: in single
    /// precision and in this order.
    Cpu(Box<[[f32; 256]; 3]>),
    /// As shift + x · scale, in one pass over the 8-bit pixels on the GPU. The last bit may differ.
    Gpu { scale: Tensor, shift: Tensor },
}

impl Pixels {
    fn new(device: Device, size: InputSize) -> Result<Self> {
        let normalization = match device {
            Device::Cpu => {
                let value =
                    |channel: usize, pixel: usize| (pixel as f32 / 255.0 - MEAN[channel]) / STANDARD_DEVIATION[channel];
                Normalization::Cpu(Box::new(std::array::from_fn(|channel| {
                    std::array::from_fn(|pixel| value(channel, pixel))
                })))
            }
            Device::Cuda(_) | Device::Mps => {
                let each = |value: fn(f64, f64) -> f64| {
                    let values: [f32; 3] = std::array::from_fn(|channel| {
                        value(f64::from(MEAN[channel]), f64::from(STANDARD_DEVIATION[channel])) as f32
                    });
                    Tensor::f_from_slice(&values)?.f_to_device(device.torch())
                };
                Normalization::Gpu {
                    scale: each(|_, deviation| 1.0 / (255.0 * deviation))?,
                    shift: each(|mean, deviation| -mean / deviation)?,
                }
            }
        };
        Ok(Pixels { size, normalization })
    }

    fn share(&self) -> Self {
        Pixels {
            size: self.size,
            normalization: match &self.normalization {
                Normalization::Cpu(tables) => Normalization::Cpu(tables.clone()),
                Normalization::Gpu { scale, shift } => Normalization::Gpu {
                    scale: scale.shallow_clone(),
                    shift: shift.shallow_clone(),
                },
            },
        }
    }

    /// Normalizes images, `u8 [n, side, side, 3]`, on the CPU.
    fn read(&self, images: &[u8]) -> Result<Tensor> {
        let Normalization::Cpu(tables) = &self.normalization else {
            unreachable!("networks on GPUs normalize there");
        };
        let [red, green, blue] = tables.as_ref();
        let mut values = Vec::with_capacity(images.len());
        for &[r, g, b] in images.as_chunks().0 {
            values.extend([red[usize::from(r)], green[usize::from(g)], blue[usize::from(b)]]);
        }
        let side = self.size.side() as i64;
        let n = (images.len() / self.size.bytes()) as i64;
        Ok(Tensor::f_from_slice(&values)?.f_reshape([n, side, side, 3])?)
    }

    /// Normalizes images, `u8 [n, side, side, 3]`, on a GPU.
    fn normalize(&self, x: &Tensor) -> Result<Tensor> {
        let Normalization::Gpu { scale, shift } = &self.normalization else {
            unreachable!("networks on the CPU normalize by tables");
        };
        Ok(shift.f_addcmul(x, scale)?)
    }
}

#[cfg(test)]
mod accuracy;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_and_plain_kernels_agree() {
        assert!(bridge::has_onednn(), "the libtorch that setup provides has oneDNN");
        let parameters = Parameters::untrained(&parameter_shapes());
        // At another size than usual, whose sides divide into Winograd's tiles otherwise.
        let size = InputSize::new(288).unwrap();
        let images: Vec<u8> = (0..2 * size.bytes()).map(|n| (n * n / 97 % 256) as u8).collect();
        for (precision, tolerance) in [(Precision::Fp32, 1e-5), (Precision::Bf16, 0.05)] {
            if let Err(error) = Device::Cpu.check(precision) {
                eprintln!("SKIPPED: {error}");
                continue;
            }
            let run = |kernels| {
                let target = Target {
                    kernels,
                    device: Device::Cpu,
                    precision,
                    size,
                    batch: 2,
                };
                Network::new(&parameters, target, None)
                    .unwrap()
                    .forward(&images, &Pooling::ALL)
                    .unwrap()
            };
            let (plain, fused) = (run(Kernels::Plain), run(Kernels::OneDnn));
            let scale = plain.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let worst = plain
                .iter()
                .zip(&fused)
                .map(|(a, b)| (a - b).abs() / scale)
                .fold(0.0, f32::max);
            assert!(worst <= tolerance, "{precision}: {worst}");
        }
    }

    #[test]
    fn the_parameters_are_those_of_torchvision() {
        let parameters = parameter_shapes();
        // torchvision's resnet50 has 25,557,032 parameters, of which 2,049,000 in fc, and 53,120
        // running statistics.
        let n: i64 = parameters
            .iter()
            .map(|parameter| parameter.shape.iter().product::<i64>())
            .sum();
        assert_eq!(n, 25_557_032 - 2_049_000 + 53_120);
        assert_eq!(parameters.len(), 53 * 5);
        assert!(
            parameters
                .iter()
                .any(|p| p.name == "layer4.0.downsample.0.weight" && p.shape == [2048, 1024, 1, 1])
        );
    }
}

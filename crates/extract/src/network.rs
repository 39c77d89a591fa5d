use tch::{Kind, Tensor};

use crate::onednn::{self, Activation, PackedConv};
use crate::weights::Parameters;
use crate::{Device, Precision, Preprocess, Result};

/// The number of features: channels before global average pooling.
pub const WIDTH: usize = 2048;

/// Added to the variance in every batch norm, as in torchvision.
const EPSILON: f64 = 1e-5;

/// ImageNet's mean and standard deviation of red, green and blue in 0..1, with which the weights were trained.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STANDARD_DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Bottleneck blocks in each of the four stages, and the channels inside them; a block's output has four times as many.
const STAGES: [(usize, i64); 4] = [(3, 64), (4, 128), (6, 256), (3, 512)];
const EXPANSION: i64 = 4;

/// A convolution and the batch norm behind it, by torchvision's names.
struct ConvNorm {
    conv: String,
    norm: String,
    /// Output channels, input channels, side of the kernel.
    shape: [i64; 3],
    stride: i64,
    /// Height and width of what goes in.
    input_side: i64,
}

/// The plan of one bottleneck block (He et al., 2015, arXiv:1512.03385), version 1.5: the 3 × 3 convolution has the stride.
struct Bottleneck {
    convs: [ConvNorm; 3],
    downsample: Option<ConvNorm>,
}

fn stem() -> ConvNorm {
    ConvNorm {
        conv: "conv1".to_owned(),
        norm: "bn1".to_owned(),
        shape: [64, 3, 7],
        stride: 2,
        input_side: Preprocess::SIDE as i64,
    }
}

fn bottlenecks() -> Vec<Bottleneck> {
    let mut blocks = Vec::new();
    let mut n_in = 64;
    // The stem and the pooling behind it halve the side twice.
    let mut side = Preprocess::SIDE as i64 / 4;
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

/// A parameter of the network.
pub(crate) struct ParameterShape {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
}

/// Every parameter of ResNet-50 without its top.
pub(crate) fn parameters() -> Vec<ParameterShape> {
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
    let blocks = bottlenecks();
    let in_blocks = blocks
        .iter()
        .flat_map(|block| block.convs.iter().chain(&block.downsample));
    std::iter::once(&stem()).chain(in_blocks).flat_map(of).collect()
}

/// Who computes the convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// libtorch's convolutions, with the activation as a step of its own.
    Plain,
    /// oneDNN's convolutions, fused with what follows.
    OneDnn,
}

impl Kernels {
    /// The best there is for a device.
    pub(crate) fn best(device: Device) -> Self {
        if device == Device::Cpu && onednn::is_available() {
            Kernels::OneDnn
        } else {
            Kernels::Plain
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kernels::Plain => "plain",
            Kernels::OneDnn => "onednn",
        }
    }
}

/// What the network is built for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) kernels: Kernels,
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    /// The number of images in every batch.
    pub(crate) batch: usize,
}

/// A convolution with the batch norm folded in.
#[derive(Debug)]
enum Conv {
    Plain {
        weight: Tensor,
        bias: Tensor,
        stride: i64,
        padding: i64,
    },
    OneDnn(PackedConv),
}

impl Conv {
    /// w' = w·γ/√(σ² + ε), b' = β − μ·γ/√(σ² + ε), computed in double precision.
    fn fold(plan: &ConvNorm, parameters: &Parameters, target: Target) -> Result<Self> {
        let get = |name: &str, part: &str| parameters.get(&format!("{name}.{part}")).to_kind(Kind::Double);
        let weight = get(&plan.conv, "weight");
        let norm = |part| get(&plan.norm, part);
        let factor = norm("weight") / (norm("running_var") + EPSILON).sqrt();
        let bias = norm("bias") - norm("running_mean") * &factor;
        let place = |tensor: Tensor| {
            tensor
                .f_to_kind(target.precision.kind())?
                .f_to_device(target.device.torch())
        };
        let weight = channels_last(&place(weight * factor.view([-1, 1, 1, 1]))?)?;
        let bias = place(bias)?;
        let [_, n_in, side] = plan.shape;
        let (stride, padding) = (plan.stride, side / 2);
        Ok(match target.kernels {
            Kernels::Plain => Conv::Plain {
                weight,
                bias,
                stride,
                padding,
            },
            Kernels::OneDnn => {
                let input = [target.batch as i64, n_in, plan.input_side, plan.input_side];
                Conv::OneDnn(PackedConv::new(&weight, bias, stride, padding, input)?)
            }
        })
    }

    fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match self {
            Conv::OneDnn(conv) => conv.run(x, activation),
            Conv::Plain {
                weight,
                bias,
                stride,
                padding,
            } => {
                let mut y = x.f_conv2d(weight, Some(bias), [*stride], [*padding], [1], 1)?;
                Ok(if activation == Activation::Relu {
                    y.f_relu_()?
                } else {
                    y
                })
            }
        }
    }

    /// relu(sum + convolution of x). The memory of `sum` may be reused.
    fn forward_add_relu(&self, x: &Tensor, sum: Tensor) -> Result<Tensor> {
        match self {
            Conv::OneDnn(conv) => conv.run_add_relu(x, sum),
            Conv::Plain { .. } => Ok(self.forward(x, Activation::None)?.f_add(&sum)?.f_relu_()?),
        }
    }
}

#[derive(Debug)]
struct Block {
    convs: [Conv; 3],
    downsample: Option<Conv>,
}

impl Block {
    fn forward(&self, x: Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.convs;
        let y = second.forward(&first.forward(&x, Activation::Relu)?, Activation::Relu)?;
        let shortcut = match &self.downsample {
            Some(conv) => conv.forward(&x, Activation::None)?,
            None => x,
        };
        third.forward_add_relu(&y, shortcut)
    }
}

/// ResNet-50 without its top, for inference, batch norms folded, in channels-last layout.
#[derive(Debug)]
pub(crate) struct Network {
    target: Target,
    mean: Tensor,
    standard_deviation: Tensor,
    stem: Conv,
    blocks: Vec<Block>,
}

impl Network {
    pub(crate) fn new(parameters: &Parameters, target: Target) -> Result<Self> {
        tch::no_grad(|| {
            let conv = |plan: &ConvNorm| Conv::fold(plan, parameters, target);
            let block = |plan: &Bottleneck| {
                let [first, second, third] = &plan.convs;
                Ok(Block {
                    convs: [conv(first)?, conv(second)?, conv(third)?],
                    downsample: plan.downsample.as_ref().map(conv).transpose()?,
                })
            };
            Ok(Network {
                target,
                mean: Tensor::from_slice(&MEAN).f_to_device(target.device.torch())?,
                standard_deviation: Tensor::from_slice(&STANDARD_DEVIATION).f_to_device(target.device.torch())?,
                stem: conv(&stem())?,
                blocks: bottlenecks().iter().map(block).collect::<Result<_>>()?,
            })
        })
    }

    /// Embeds a batch of RGB images, `u8 [batch, 224, 224, 3]`; the result is `f32 [batch, 2048]` in C order.
    pub(crate) fn forward(&self, images: &[u8]) -> Result<Vec<f32>> {
        let Target {
            device,
            precision,
            batch,
            ..
        } = self.target;
        let (n, side) = (batch as i64, Preprocess::SIDE as i64);
        tch::no_grad(|| {
            let pixels = Tensor::f_from_data_size(images, &[n, side, side, 3], Kind::Uint8)?;
            // In this order, so that the numbers are those of torchvision's ToTensor and Normalize.
            let x = pixels
                .f_to_device(device.torch())?
                .f_to_kind(Kind::Float)?
                .f_div_scalar_(255.0)?;
            let x = x
                .f_sub(&self.mean)?
                .f_div(&self.standard_deviation)?
                .f_to_kind(precision.kind())?;
            let mut x = self.stem.forward(&x.f_permute([0, 3, 1, 2])?, Activation::Relu)?;
            x = x.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
            for block in &self.blocks {
                x = block.forward(x)?;
            }
            let pooled = x
                .f_to_kind(Kind::Float)?
                .f_mean_dim([2, 3].as_slice(), false, Kind::Float)?;
            let mut features = vec![0.0; batch * WIDTH];
            pooled
                .f_to_device(tch::Device::Cpu)?
                .f_contiguous()?
                .f_copy_data(&mut features, batch * WIDTH)?;
            Ok(features)
        })
    }
}

/// The same tensor `[a, b, h, w]`, stored in the order a, h, w, b.
fn channels_last(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor
        .f_permute([0, 2, 3, 1])?
        .f_contiguous()?
        .f_permute([0, 3, 1, 2])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{WeightsSource, WeightsStore};

    #[test]
    fn fused_and_plain_kernels_agree() {
        assert!(onednn::is_available(), "the libtorch that setup provides has oneDNN");
        let parameters = WeightsSource::Untrained
            .load(&WeightsStore::new("unused".into(), None), &())
            .unwrap();
        let images: Vec<u8> = (0..2 * Preprocess::BYTES).map(|n| (n * n / 97 % 256) as u8).collect();
        for (precision, tolerance) in [(Precision::Fp32, 1e-5), (Precision::Bf16, 0.05)] {
            let run = |kernels| {
                let target = Target {
                    kernels,
                    device: Device::Cpu,
                    precision,
                    batch: 2,
                };
                Network::new(&parameters, target).unwrap().forward(&images).unwrap()
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
        let parameters = parameters();
        // torchvision's resnet50 has 25,557,032 parameters, of which 2,049,000 in fc, and 53,120 running statistics.
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

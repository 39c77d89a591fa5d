//! ResNet-50 for other programs: its layers with batch norms folded in, and its parameters by torchvision's names.

use super::resnet50::{self, ConvNorm, Folded};
use crate::{InputSize, Observer, Result, WeightsSource, WeightsStore};

/// A convolution with the batch norm after it folded in.
#[derive(Clone, Debug, PartialEq)]
pub struct PortableConv {
    /// torchvision's name, for example `layer1.0.conv1`.
    pub name: String,
    /// Output channels, input channels, height and width of the kernel.
    pub shape: [usize; 4],
    /// In this shape, in C order.
    pub weight: Vec<f32>,
    /// One for each output channel.
    pub bias: Vec<f32>,
    /// Of both axes.
    pub stride: usize,
    /// At each of the four sides.
    pub padding: usize,
}

/// A bottleneck block: a ReLU follows the first and the second convolution, and the sum of the third and the shortcut.
#[derive(Clone, Debug, PartialEq)]
pub struct PortableBlock {
    /// 1 × 1, 3 × 3 and 1 × 1.
    pub convs: [PortableConv; 3],
    /// What makes the shortcut of the block's input; `None` if the input is the shortcut.
    pub downsample: Option<PortableConv>,
}

/// ResNet-50 without its top: a first convolution with a ReLU, a maximum over 3 × 3 pixels with stride 2 and padding 1,
/// and the blocks. What comes out is pooled over all pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct PortableNetwork {
    /// The first convolution, of normalized pixels.
    pub stem: PortableConv,
    /// The blocks in order.
    pub blocks: Vec<PortableBlock>,
}

/// The mean of red, green and blue, 0 to 1, that normalization subtracts.
pub const MEAN: [f32; 3] = resnet50::MEAN;

/// The standard deviation of red, green and blue that normalization divides by.
pub const STANDARD_DEVIATION: [f32; 3] = resnet50::STANDARD_DEVIATION;

impl PortableNetwork {
    /// Loads weights, downloading them first if need be, and folds the batch norms in.
    ///
    /// # Errors
    /// Those of [`Extractor::load`](crate::Extractor::load) about weights.
    pub fn load(weights: &WeightsSource, store: &WeightsStore, observer: &dyn Observer) -> Result<Self> {
        let parameters = store.load(weights, &resnet50::parameter_shapes(), observer)?;
        let conv = |plan: &ConvNorm| {
            let [n_out, n_in, side] = plan.shape.map(|length| length as usize);
            let Folded { weight, bias } = Folded::new(plan, &parameters);
            PortableConv {
                name: plan.name().to_owned(),
                shape: [n_out, n_in, side, side],
                weight: channels_first(&weight, n_in, side * side),
                bias,
                stride: plan.stride as usize,
                padding: side / 2,
            }
        };
        let blocks = resnet50::bottlenecks(InputSize::default());
        Ok(PortableNetwork {
            stem: conv(&resnet50::stem(InputSize::default())),
            blocks: (blocks.iter())
                .map(|block| PortableBlock {
                    convs: block.convs.each_ref().map(conv),
                    downsample: block.downsample.as_ref().map(conv),
                })
                .collect(),
        })
    }
}

/// Filters `[out, pixels, in]` as `[out, in, pixels]`.
fn channels_first(weight: &[f32], n_in: usize, area: usize) -> Vec<f32> {
    let filters = weight.chunks_exact(n_in * area);
    filters
        .flat_map(|filter| (0..n_in).flat_map(move |channel| filter[channel..].iter().step_by(n_in).copied()))
        .collect()
}

/// A tensor of torchvision's `state_dict`, in single precision.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// For example `layer1.0.conv1.weight`.
    pub name: String,
    /// The lengths of its axes.
    pub shape: Vec<usize>,
    /// In C order.
    pub values: Vec<f32>,
}

/// All parameters of ResNet-50 without its top, as torchvision's `resnet50` names them.
///
/// # Errors
/// Those of [`PortableNetwork::load`].
pub fn state_dict(weights: &WeightsSource, store: &WeightsStore, observer: &dyn Observer) -> Result<Vec<NamedTensor>> {
    let shapes = resnet50::parameter_shapes();
    let parameters = store.load(weights, &shapes, observer)?;
    let tensor = |shape: &super::parameters::ParameterShape| NamedTensor {
        values: parameters.get(&shape.name).to_vec(),
        name: shape.name.clone(),
        shape: shape.shape.iter().map(|&length| length as usize).collect(),
    };
    Ok(shapes.iter().map(tensor).collect())
}

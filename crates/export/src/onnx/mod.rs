//! A model with its network as an ONNX file, for ONNX Runtime and what stands on it: Python, browsers, phones.

mod builder;
mod interpret;
mod proto;

use luthier_classify::Model;
use luthier_extract::{
    Combine, Framing, InputSize, MEAN, Pooling, PortableBlock, PortableConv, PortableNetwork, STANDARD_DEVIATION, View,
    Views,
};
use prost::Message;

use self::builder::{Builder, Length, Value, int, ints, word};
use self::proto::{OperatorSet, Property, data_type};

pub(crate) use self::interpret::{Input, run};

/// The operators of ONNX 1.13, of 2022: the first that resize as Pillow does.
const OPERATORS: i64 = 18;

/// The version of the file format that goes with them.
const IR_VERSION: i64 = 8;

/// What the graph takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A decoded image of any size, `u8 [height, width, 3]`: preprocessing is in the graph.
    Image,
    /// Images that are resized already, `u8 [n, side, side, 3]`, an input for each view.
    Pixels,
}

/// The name of the only output: `f32 [n, classes]`, rows that add up to 1.
pub const OUTPUT: &str = "probabilities";

/// The name of the input of [`Form::Image`].
pub const IMAGE: &str = "image";

/// Writes a model and its network, in single precision.
pub(crate) fn encode(model: &Model, views: &Views, pooling: Pooling, network: &PortableNetwork, form: Form) -> Vec<u8> {
    let mut graph = Builder::default();
    let pixels: Vec<Value> = match form {
        Form::Image => {
            let lengths = [Length::Any("height"), Length::Any("width"), Length::Fixed(3)];
            let about = "a decoded image, upright, red, green and blue";
            let image = graph.input(IMAGE, data_type::UINT8, &lengths, about);
            let planes = graph.step("Transpose", &[&image], vec![ints("perm", &[2, 0, 1])]);
            let first = graph.whole(&[0]);
            let planes = graph.step("Unsqueeze", &[&planes, &first], Vec::new());
            (views.as_slice().iter())
                .map(|view| framed(&mut graph, &planes, *view))
                .collect()
        }
        Form::Pixels => (views.as_slice().iter())
            .map(|view| {
                let side = Length::Fixed(view.size.side());
                let lengths = [
                    Length::Any("n"),
                    side,
                    Length::Fixed(view.size.side()),
                    Length::Fixed(3),
                ];
                let about = format!("images as the view {view} shows them, red, green and blue");
                let images = graph.input(&view.to_string(), data_type::UINT8, &lengths, &about);
                graph.step("Transpose", &[&images], vec![ints("perm", &[0, 3, 1, 2])])
            })
            .collect(),
    };
    let rows: Vec<Value> = pixels
        .iter()
        .map(|pixels| features(&mut graph, pixels, network, pooling))
        .collect();
    let features = combined(&mut graph, &rows, views.combination());
    let (k, d) = model.head_weight.dim();
    let weight: Vec<f32> = model.head_weight.iter().copied().collect();
    let weight = graph.tensor("head.weight", &[k, d], &weight);
    let bias = graph.tensor("head.bias", &[k], &model.head_bias.to_vec());
    let scores = graph.step("Gemm", &[&features, &weight, &bias], vec![int("transB", 1)]);
    let probabilities = graph.step("Softmax", &[&scores], vec![int("axis", -1)]);
    let n = match form {
        Form::Image => Length::Fixed(1),
        Form::Pixels => Length::Any("n"),
    };
    let about = "the probability of each class, in the order of luthier.classes";
    let graph = graph.finish(&probabilities, OUTPUT, data_type::FLOAT, &[n, Length::Fixed(k)], about);
    proto::Model {
        ir_version: Some(IR_VERSION),
        producer_name: Some("luthier".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        doc_string: Some("A classifier of images on a frozen ResNet-50".to_owned()),
        graph: Some(graph),
        opset_import: vec![OperatorSet {
            domain: Some(String::new()),
            version: Some(OPERATORS),
        }],
        metadata_props: metadata(model),
    }
    .encode_to_vec()
}

/// What a program needs to know beside the graph; each value is JSON.
fn metadata(model: &Model) -> Vec<Property> {
    let thresholds = model.training.cross_validation.as_ref().map(|found| &found.thresholds);
    let values = [
        ("luthier.classes", serde_json::to_string(&model.classes)),
        ("luthier.extractor", serde_json::to_string(&model.extractor)),
        ("luthier.thresholds", serde_json::to_string(&thresholds)),
    ];
    let property = |(key, value): (&str, serde_json::Result<String>)| Property {
        key: Some(key.to_owned()),
        value: Some(value.expect("names and numbers always serialize")),
    };
    values.into_iter().map(property).collect()
}

/// An image `u8 [1, 3, h, w]` in a view: `u8 [1, 3, side, side]`.
fn framed(graph: &mut Builder, image: &Value, View { framing, size }: View) -> Value {
    let side = size.side() as i64;
    let framed = match framing {
        Framing::Squash | Framing::Mirror => {
            let sizes = graph.whole(&[1, 3, side, side]);
            resized(graph, image, &sizes)
        }
        Framing::Crop | Framing::CropMirror => cropped(graph, image, size),
        Framing::Pad | Framing::PadMirror => padded(graph, image, side),
    };
    match framing {
        Framing::Mirror | Framing::CropMirror | Framing::PadMirror => {
            let (last, to, axis, step) = (
                graph.whole(&[-1]),
                graph.whole(&[i64::MIN]),
                graph.whole(&[3]),
                graph.whole(&[-1]),
            );
            graph.step("Slice", &[&framed, &last, &to, &axis, &step], Vec::new())
        }
        _ => framed,
    }
}

/// Antialiased bilinear resizing of bytes, as Pillow does it.
fn resized(graph: &mut Builder, image: &Value, sizes: &Value) -> Value {
    let none = String::new();
    let attributes = vec![
        word("mode", "linear"),
        word("coordinate_transformation_mode", "half_pixel"),
        int("antialias", 1),
    ];
    graph.step("Resize", &[image, &none, &none, sizes], attributes)
}

/// Height and width, `i64 [2]`.
fn height_and_width(graph: &mut Builder, image: &Value) -> Value {
    graph.step("Shape", &[image], vec![int("start", 2), int("end", 4)])
}

/// `i64 [4]`: one image of three colours with this height and width.
fn sizes(graph: &mut Builder, height_and_width: &Value) -> Value {
    let first = graph.whole(&[1, 3]);
    graph.step("Concat", &[&first, height_and_width], vec![int("axis", 0)])
}

/// Half of whole numbers, rounded half to even.
fn half(graph: &mut Builder, values: &Value) -> Value {
    let values = graph.step("Cast", &[values], vec![int("to", data_type::DOUBLE.into())]);
    let half = graph.doubles(&[0.5]);
    let halves = graph.step("Mul", &[&values, &half], Vec::new());
    let rounded = graph.step("Round", &[&halves], Vec::new());
    graph.step("Cast", &[&rounded], vec![int("to", data_type::INT64.into())])
}

/// The short side to 256 of 224, rounded down, and the middle of it.
fn cropped(graph: &mut Builder, image: &Value, size: InputSize) -> Value {
    let side = size.side() as i64;
    let lengths = height_and_width(graph, image);
    let short = graph.step("ReduceMin", &[&lengths], vec![int("keepdims", 1)]);
    let wanted = graph.whole(&[size.short_side() as i64]);
    let scaled = graph.step("Mul", &[&lengths, &wanted], Vec::new());
    let lengths = graph.step("Div", &[&scaled, &short], Vec::new());
    let sizes = sizes(graph, &lengths);
    let image = resized(graph, image, &sizes);
    let (of_side, axes) = (graph.whole(&[side, side]), graph.whole(&[2, 3]));
    let left_over = graph.step("Sub", &[&lengths, &of_side], Vec::new());
    let starts = half(graph, &left_over);
    let ends = graph.step("Add", &[&starts, &of_side], Vec::new());
    graph.step("Slice", &[&image, &starts, &ends, &axes], Vec::new())
}

/// The long side to all, and white around it.
fn padded(graph: &mut Builder, image: &Value, side: i64) -> Value {
    let double = || vec![int("to", data_type::DOUBLE.into())];
    let lengths = height_and_width(graph, image);
    let long = graph.step("ReduceMax", &[&lengths], vec![int("keepdims", 1)]);
    let (lengths, long) = (
        graph.step("Cast", &[&lengths], double()),
        graph.step("Cast", &[&long], double()),
    );
    let (of_side, one) = (graph.doubles(&[side as f64]), graph.doubles(&[1.0]));
    let shares = graph.step("Div", &[&lengths, &long], Vec::new());
    let exact = graph.step("Mul", &[&shares, &of_side], Vec::new());
    let rounded = graph.step("Round", &[&exact], Vec::new());
    let lengths = graph.step("Max", &[&rounded, &one], Vec::new());
    let lengths = graph.step("Cast", &[&lengths], vec![int("to", data_type::INT64.into())]);
    let sizes = sizes(graph, &lengths);
    let image = resized(graph, image, &sizes);
    let of_side = graph.whole(&[side, side]);
    let left_over = graph.step("Sub", &[&of_side, &lengths], Vec::new());
    let before = half(graph, &left_over);
    let after = graph.step("Sub", &[&left_over, &before], Vec::new());
    let (none, white) = (graph.whole(&[0, 0]), graph.byte(255));
    let pads = graph.step("Concat", &[&none, &before, &none, &after], vec![int("axis", 0)]);
    graph.step("Pad", &[&image, &pads, &white], Vec::new())
}

/// Pixels `u8 [n, 3, side, side]` to features `f32 [n, 2048]`.
fn features(graph: &mut Builder, pixels: &Value, network: &PortableNetwork, pooling: Pooling) -> Value {
    let x = graph.step("Cast", &[pixels], vec![int("to", data_type::FLOAT.into())]);
    let (most, mean, deviation) = (
        graph.floats(&[], &[255.0]),
        graph.floats(&[1, 3, 1, 1], &MEAN),
        graph.floats(&[1, 3, 1, 1], &STANDARD_DEVIATION),
    );
    let x = graph.step("Div", &[&x, &most], Vec::new());
    let x = graph.step("Sub", &[&x, &mean], Vec::new());
    let x = graph.step("Div", &[&x, &deviation], Vec::new());
    let x = conv(graph, &x, &network.stem);
    let x = graph.step("Relu", &[&x], Vec::new());
    let window = vec![
        ints("kernel_shape", &[3, 3]),
        ints("strides", &[2, 2]),
        ints("pads", &[1, 1, 1, 1]),
    ];
    let mut x = graph.step("MaxPool", &[&x], window);
    for block in &network.blocks {
        x = bottleneck(graph, &x, block);
    }
    let axes = graph.whole(&[2, 3]);
    let mean = |graph: &mut Builder, x: &Value| graph.step("ReduceMean", &[x, &axes], vec![int("keepdims", 0)]);
    match pooling {
        Pooling::Mean => mean(graph, &x),
        Pooling::Gem => {
            let square = graph.step("Mul", &[&x, &x], Vec::new());
            let cube = graph.step("Mul", &[&square, &x], Vec::new());
            let means = mean(graph, &cube);
            let third = graph.floats(&[], &[1.0 / 3.0]);
            graph.step("Pow", &[&means, &third], Vec::new())
        }
    }
}

fn bottleneck(graph: &mut Builder, x: &Value, PortableBlock { convs, downsample }: &PortableBlock) -> Value {
    let [first, second, third] = convs;
    let y = conv(graph, x, first);
    let y = graph.step("Relu", &[&y], Vec::new());
    let y = conv(graph, &y, second);
    let y = graph.step("Relu", &[&y], Vec::new());
    let y = conv(graph, &y, third);
    let shortcut = match downsample {
        Some(downsample) => conv(graph, x, downsample),
        None => x.clone(),
    };
    let sum = graph.step("Add", &[&y, &shortcut], Vec::new());
    graph.step("Relu", &[&sum], Vec::new())
}

/// A convolution. Several views have its numbers in common.
fn conv(graph: &mut Builder, x: &Value, conv: &PortableConv) -> Value {
    let (weight, bias) = (format!("{}.weight", conv.name), format!("{}.bias", conv.name));
    if !graph.has(&weight) {
        graph.tensor(&weight, &conv.shape, &conv.weight);
        graph.tensor(&bias, &conv.shape[..1], &conv.bias);
    }
    let [_, _, height, width] = conv.shape.map(|length| length as i64);
    let attributes = vec![
        ints("kernel_shape", &[height, width]),
        ints("strides", &[conv.stride as i64; 2]),
        ints("pads", &[conv.padding as i64; 4]),
    ];
    graph.step("Conv", &[x, &weight, &bias], attributes)
}

/// The features of several views as one row.
fn combined(graph: &mut Builder, rows: &[Value], combine: Combine) -> Value {
    let [first, rest @ ..] = rows else {
        unreachable!("there is a view")
    };
    if rest.is_empty() {
        return first.clone();
    }
    match combine {
        Combine::Concat => {
            let rows: Vec<&Value> = rows.iter().collect();
            graph.step("Concat", &rows, vec![int("axis", 1)])
        }
        Combine::Mean => {
            let sum = rest
                .iter()
                .fold(first.clone(), |sum, row| graph.step("Add", &[&sum, row], Vec::new()));
            let n = graph.floats(&[], &[rows.len() as f32]);
            graph.step("Div", &[&sum, &n], Vec::new())
        }
    }
}

//! Runs an ONNX file that was written here, step by step on libtorch: to see what it answers before others do.
//!
//! It knows only the operators that occur in such files, in the form in which they occur.

use std::collections::HashMap;

use prost::Message;
use tch::{Kind, Tensor};

use super::proto::{Attribute, Model, Node, data_type};
use crate::{Error, Result};

/// An input by its name.
pub(crate) struct Input<'a> {
    pub(crate) name: &'a str,
    /// `u8`, in C order.
    pub(crate) bytes: &'a [u8],
    pub(crate) shape: &'a [i64],
}

/// What the file's graph makes of these inputs: its only output in C order.
///
/// # Errors
/// [`Error::Unreadable`] if the bytes are no such file; [`Error::Extract`] if libtorch fails.
pub(crate) fn run(file: &[u8], inputs: &[Input<'_>]) -> Result<Vec<f32>> {
    let wrong = |what: &str| Error::Unreadable(what.to_owned());
    let model = Model::decode(file).map_err(|error| Error::Unreadable(error.to_string()))?;
    let graph = model.graph.ok_or_else(|| wrong("no graph"))?;
    tch::no_grad(|| {
        let mut values: HashMap<String, Tensor> = HashMap::new();
        for input in inputs {
            let tensor = Tensor::f_from_data_size(input.bytes, input.shape, Kind::Uint8)?;
            values.insert(input.name.to_owned(), tensor);
        }
        for tensor in &graph.initializer {
            let kind = kind(tensor.data_type.unwrap_or_default())?;
            let bytes = tensor.raw_data.as_deref().unwrap_or_default();
            let value = Tensor::f_from_data_size(bytes, &tensor.dims, kind)?;
            values.insert(tensor.name.clone().unwrap_or_default(), value);
        }
        for node in &graph.node {
            let missing = |name: &String| Error::Unreadable(format!("{name}, which no step before makes"));
            let inputs = node.input.iter().filter(|name| !name.is_empty());
            let inputs: Vec<&Tensor> = inputs
                .map(|name| values.get(name).ok_or_else(|| missing(name)))
                .collect::<Result<_>>()?;
            let output = step(node, &inputs)?;
            let name = node.output.first().ok_or_else(|| wrong("a step without an output"))?;
            values.insert(name.clone(), output);
        }
        let output = graph.output.first().and_then(|output| output.name.as_ref());
        let output = output
            .and_then(|name| values.get(name))
            .ok_or_else(|| wrong("no output"))?;
        let mut found = vec![0.0; output.numel()];
        let n = found.len();
        output.f_contiguous()?.f_copy_data(&mut found, n)?;
        Ok(found)
    })
}

fn kind(data_type: i32) -> Result<Kind> {
    match data_type {
        data_type::FLOAT => Ok(Kind::Float),
        data_type::UINT8 => Ok(Kind::Uint8),
        data_type::INT64 => Ok(Kind::Int64),
        data_type::DOUBLE => Ok(Kind::Double),
        other => Err(Error::Unreadable(format!("numbers of type {other}"))),
    }
}

fn attribute<'a>(node: &'a Node, name: &str) -> Option<&'a Attribute> {
    node.attribute
        .iter()
        .find(|attribute| attribute.name.as_deref() == Some(name))
}

fn whole(tensor: &Tensor) -> Result<Vec<i64>> {
    Ok(Vec::<i64>::try_from(tensor.f_contiguous()?)?)
}

fn step(node: &Node, inputs: &[&Tensor]) -> Result<Tensor> {
    let op = node.op_type.as_deref().unwrap_or_default();
    let int = |name: &str| {
        attribute(node, name)
            .and_then(|attribute| attribute.i)
            .unwrap_or_default()
    };
    let ints = |name: &str| {
        attribute(node, name)
            .map(|attribute| attribute.ints.clone())
            .unwrap_or_default()
    };
    Ok(match (op, inputs) {
        ("Identity", [x]) => x.shallow_clone(),
        ("Cast", [x]) => x.f_to_kind(kind(int("to") as i32)?)?,
        ("Transpose", [x]) => x.f_permute(ints("perm"))?,
        ("Unsqueeze", [x, axes]) => x.f_unsqueeze(whole(axes)?[0])?,
        ("Shape", [x]) => Tensor::f_from_slice(&x.size()[int("start") as usize..int("end") as usize])?,
        ("Concat", _) => Tensor::f_cat(inputs, int("axis"))?,
        ("Add", [a, b]) => a.f_add(b)?,
        ("Sub", [a, b]) => a.f_sub(b)?,
        ("Mul", [a, b]) => a.f_mul(b)?,
        ("Div", [a, b]) if a.kind() == Kind::Int64 => a.f_divide_tensor_mode(b, "floor")?,
        ("Div", [a, b]) => a.f_div(b)?,
        ("Max", [a, b]) => a.f_maximum(b)?,
        ("Pow", [a, b]) => a.f_pow(b)?,
        ("Round", [x]) => x.f_round()?,
        ("Relu", [x]) => x.f_relu()?,
        ("ReduceMin", [x]) => x.f_min()?.f_reshape([1])?,
        ("ReduceMax", [x]) => x.f_max()?.f_reshape([1])?,
        ("ReduceMean", [x, axes]) => x.f_mean_dim(whole(axes)?, int("keepdims") == 1, None::<Kind>)?,
        ("Resize", [x, sizes]) => {
            let size = &whole(sizes)?[2..];
            x.f_internal_upsample_bilinear2d_aa(size, false, None::<f64>, None::<f64>)?
        }
        ("Slice", [x, starts, ends, axes]) => {
            let bounds = whole(starts)?.into_iter().zip(whole(ends)?).zip(whole(axes)?);
            let mut x = x.shallow_clone();
            for ((start, end), axis) in bounds {
                x = x.f_slice(axis, start, end, 1)?;
            }
            x
        }
        // Backwards over a whole axis.
        ("Slice", [x, _, _, axes, _]) => x.f_flip(whole(axes)?)?,
        ("Pad", [x, pads, value]) => {
            let pads = whole(pads)?;
            let (before, after) = pads.split_at(pads.len() / 2);
            // libtorch wants the last axis first.
            let pads: Vec<i64> = before.iter().zip(after).rev().flat_map(|(a, b)| [*a, *b]).collect();
            x.f_pad(pads, "constant", value.f_double_value(&[])?)?
        }
        ("Conv", [x, weight, bias]) => {
            let (strides, pads) = (ints("strides"), ints("pads"));
            x.f_conv2d(weight, Some(*bias), strides, &pads[..2], [1, 1], 1)?
        }
        ("MaxPool", [x]) => {
            let pads = ints("pads");
            x.f_max_pool2d(ints("kernel_shape"), ints("strides"), &pads[..2], [1, 1], false)?
        }
        ("Gemm", [x, weight, bias]) => x.f_linear(weight, Some(*bias))?,
        ("Softmax", [x]) => x.f_softmax(int("axis"), None::<Kind>)?,
        _ => return Err(Error::Unreadable(format!("step {op} with {} inputs", inputs.len()))),
    })
}

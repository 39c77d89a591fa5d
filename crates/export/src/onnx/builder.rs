//! Puts a graph together, step by step. Each step gives the name of its output.

use super::proto::{
    Attribute, Dimension, Graph, Node, Shape, Tensor, TensorType, Type, ValueInfo, attribute_type, data_type,
};

/// A graph that is not complete yet.
#[derive(Default)]
pub(crate) struct Builder {
    graph: Graph,
}

/// The name of a value.
pub(crate) type Value = String;

/// The length of an axis.
pub(crate) enum Length {
    /// Always the same.
    Fixed(usize),
    /// Of any length, by a name.
    Any(&'static str),
}

impl Builder {
    /// An input of the graph.
    pub(crate) fn input(&mut self, name: &str, kind: i32, lengths: &[Length], about: &str) -> Value {
        self.graph.input.push(value_info(name, kind, lengths, about));
        name.to_owned()
    }

    /// Ends the graph: this value is its output, by this name.
    pub(crate) fn finish(mut self, value: &Value, name: &str, kind: i32, lengths: &[Length], about: &str) -> Graph {
        self.named("Identity", &[value], Vec::new(), name);
        self.graph.output.push(value_info(name, kind, lengths, about));
        self.graph.name = Some("luthier".to_owned());
        self.graph
    }

    /// A step whose output gets a name of its own.
    pub(crate) fn step(&mut self, op: &str, inputs: &[&Value], attributes: Vec<Attribute>) -> Value {
        let name = format!("{}_{}", op.to_lowercase(), self.graph.node.len());
        self.named(op, inputs, attributes, &name)
    }

    /// A step whose output has this name.
    pub(crate) fn named(&mut self, op: &str, inputs: &[&Value], attributes: Vec<Attribute>, name: &str) -> Value {
        self.graph.node.push(Node {
            input: inputs.iter().map(|input| (*input).clone()).collect(),
            output: vec![name.to_owned()],
            name: Some(name.to_owned()),
            op_type: Some(op.to_owned()),
            attribute: attributes,
        });
        name.to_owned()
    }

    /// Whole numbers, `[n]`.
    pub(crate) fn whole(&mut self, values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(data_type::INT64, &[values.len()], bytes)
    }

    /// Numbers in double precision, `[n]`.
    pub(crate) fn doubles(&mut self, values: &[f64]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(data_type::DOUBLE, &[values.len()], bytes)
    }

    /// One byte, `[]`.
    pub(crate) fn byte(&mut self, value: u8) -> Value {
        self.constant(data_type::UINT8, &[], vec![value])
    }

    /// Numbers in single precision.
    pub(crate) fn floats(&mut self, shape: &[usize], values: &[f32]) -> Value {
        let name = format!("constant_{}", self.graph.initializer.len());
        self.tensor(&name, shape, values)
    }

    /// Numbers in single precision by this name.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.add(name.to_owned(), data_type::FLOAT, shape, bytes)
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        let mut names = self.graph.initializer.iter().map(|tensor| &tensor.name);
        names.any(|known| known.as_deref() == Some(name))
    }

    fn constant(&mut self, kind: i32, shape: &[usize], bytes: Vec<u8>) -> Value {
        let name = format!("constant_{}", self.graph.initializer.len());
        self.add(name, kind, shape, bytes)
    }

    fn add(&mut self, name: String, kind: i32, shape: &[usize], bytes: Vec<u8>) -> Value {
        self.graph.initializer.push(Tensor {
            dims: shape.iter().map(|&length| length as i64).collect(),
            data_type: Some(kind),
            name: Some(name.clone()),
            raw_data: Some(bytes),
        });
        name
    }
}

fn value_info(name: &str, kind: i32, lengths: &[Length], about: &str) -> ValueInfo {
    let dimension = |length: &Length| match length {
        Length::Fixed(length) => Dimension {
            dim_value: Some(*length as i64),
            dim_param: None,
        },
        Length::Any(name) => Dimension {
            dim_value: None,
            dim_param: Some((*name).to_owned()),
        },
    };
    ValueInfo {
        name: Some(name.to_owned()),
        r#type: Some(Type {
            tensor_type: Some(TensorType {
                elem_type: Some(kind),
                shape: Some(Shape {
                    dim: lengths.iter().map(dimension).collect(),
                }),
            }),
        }),
        doc_string: Some(about.to_owned()),
    }
}

/// A whole number of a step.
pub(crate) fn int(name: &str, value: i64) -> Attribute {
    Attribute {
        name: Some(name.to_owned()),
        i: Some(value),
        r#type: Some(attribute_type::INT),
        ..Attribute::default()
    }
}

/// Whole numbers of a step.
pub(crate) fn ints(name: &str, values: &[i64]) -> Attribute {
    Attribute {
        name: Some(name.to_owned()),
        ints: values.to_vec(),
        r#type: Some(attribute_type::INTS),
        ..Attribute::default()
    }
}

/// A word of a step.
pub(crate) fn word(name: &str, value: &str) -> Attribute {
    Attribute {
        name: Some(name.to_owned()),
        s: Some(value.as_bytes().to_vec()),
        r#type: Some(attribute_type::STRING),
        ..Attribute::default()
    }
}

//! PyTorch's checkpoints, as `torch.save` has written them since version 1.6: a zip archive with a pickle that names
//! tensors, and their bytes beside it.
//!
//! A pickle is a program for a small stack machine that may call anything in Python. The machine here knows the
//! instructions that dictionaries of tensors need, and calls nothing: what stands for a call of one of five harmless
//! functions makes plain data, and any other name is an error. See Python's `pickletools` for the instructions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Cursor;
use std::rc::Rc;

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

/// Whether a file begins like an archive, and so like a checkpoint.
pub(super) fn is_checkpoint(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || is_old(bytes)
}

/// Before version 1.6, `torch.save` wrote one pickle after another, the first of which is a number.
fn is_old(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19")
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredTensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Little-endian, in C order.
    pub(super) bytes: Vec<u8>,
}

/// The tensors of a checkpoint by name: of a dictionary of tensors, or of the one that it has as `state_dict` or `model`.
/// A prefix `module.`, which PyTorch's `DataParallel` puts before all names, is left out.
///
/// # Errors
/// What was found instead, in words.
pub(super) fn read(bytes: &[u8]) -> Result<HashMap<String, StoredTensor>, String> {
    if is_old(bytes) {
        return Err(
            "PyTorch's format before 1.6: load it with torch.load, and save it again with torch.save".to_owned(),
        );
    }
    let mut archive = Archive::open(bytes)?;
    let program = archive.member("data.pkl")?.to_vec();
    if let Ok(order) = archive.member("byteorder")
        && order != b"little"
    {
        return Err(format!("numbers in {} byte order", String::from_utf8_lossy(order)));
    }
    let top = Machine::default().run(&program)?;
    let tensors =
        named_tensors(&top).ok_or("no dictionary of tensors, neither at the top nor as state_dict or model")?;
    let mut read = HashMap::new();
    for (name, tensor) in tensors {
        read.insert(
            name.strip_prefix("module.").unwrap_or(&name).to_owned(),
            tensor.load(&mut archive)?,
        );
    }
    Ok(read)
}

/// The archive of a checkpoint, whose members all lie in one folder.
struct Archive<'a> {
    bytes: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    folder: String,
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let zip = ZipArchive::new(Cursor::new(bytes)).map_err(|error| format!("a damaged zip archive: {error}"))?;
        let folder = zip
            .file_names()
            .find_map(|name| name.strip_suffix("data.pkl"))
            .map(str::to_owned);
        let folder = folder.ok_or("a zip archive without data.pkl, which is no checkpoint of PyTorch's")?;
        Ok(Archive { bytes, zip, folder })
    }

    /// The bytes of a member.
    fn member(&mut self, name: &str) -> Result<&'a [u8], String> {
        let name = format!("{}{name}", self.folder);
        let file = self.zip.by_name(&name).map_err(|error| format!("no {name}: {error}"))?;
        if file.compression() != CompressionMethod::Stored {
            return Err(format!("{name} in compressed form"));
        }
        let start = file.data_start() as usize;
        let end = start.checked_add(file.size() as usize);
        let bytes: &'a [u8] = self.bytes;
        end.and_then(|end| bytes.get(start..end))
            .ok_or_else(|| format!("{name} cut short"))
    }
}

/// Where the numbers of a tensor are.
#[derive(Clone, Debug)]
struct Storage {
    dtype: Dtype,
    key: String,
}

#[derive(Clone, Debug)]
struct TensorPlace {
    storage: Storage,
    /// In numbers, not bytes.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl TensorPlace {
    fn load(&self, archive: &mut Archive<'_>) -> Result<StoredTensor, String> {
        let Storage { dtype, key } = &self.storage;
        let numbers = archive.member(&format!("data/{key}"))?;
        let size = dtype.bitsize() / 8;
        let outside = || format!("a tensor of shape {:?} outside of data/{key}", self.shape);
        let n = self
            .shape
            .iter()
            .try_fold(1_usize, |n, &length| n.checked_mul(length))
            .ok_or_else(outside)?;
        if n.checked_mul(size).is_none_or(|length| length > numbers.len()) {
            return Err(outside());
        }
        let mut bytes = Vec::with_capacity(n * size);
        let mut index: Vec<usize> = vec![0; self.shape.len()];
        for _ in 0..n {
            let steps = index
                .iter()
                .zip(&self.strides)
                .try_fold(self.offset, |at, (&place, &stride)| {
                    at.checked_add(place.checked_mul(stride)?)
                });
            let at = steps.and_then(|at| at.checked_mul(size)).ok_or_else(outside)?;
            bytes.extend(numbers.get(at..at + size).ok_or_else(outside)?);
            for (place, &length) in index.iter_mut().zip(&self.shape).rev() {
                *place += 1;
                if *place < length {
                    break;
                }
                *place = 0;
            }
        }
        Ok(StoredTensor {
            dtype: *dtype,
            shape: self.shape.clone(),
            bytes,
        })
    }
}

/// What lies on the machine's stack.
#[derive(Clone, Debug)]
enum Value {
    Mark,
    /// Something whose value does not matter.
    Other,
    Whole(i64),
    Text(String),
    Tuple(Vec<Value>),
    List(Rc<RefCell<Vec<Value>>>),
    Dictionary(Rc<RefCell<Vec<(Value, Value)>>>),
    Name(Name),
    Storage(Storage),
    Tensor(TensorPlace),
}

/// The names that a pickle may mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Dictionary,
    Tensor,
    Parameter,
    Storage(Dtype),
}

impl Name {
    fn known(module: &str, name: &str) -> Result<Self, String> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Name::Dictionary,
            ("torch._utils", "_rebuild_tensor_v2") => Name::Tensor,
            ("torch._utils", "_rebuild_parameter") => Name::Parameter,
            ("torch", "FloatStorage") => Name::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Name::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Name::Storage(Dtype::BF16),
            ("torch", "DoubleStorage") => Name::Storage(Dtype::F64),
            ("torch", "LongStorage") => Name::Storage(Dtype::I64),
            ("torch", "IntStorage") => Name::Storage(Dtype::I32),
            ("torch", "BoolStorage") => Name::Storage(Dtype::BOOL),
            ("torch", "ByteStorage") => Name::Storage(Dtype::U8),
            _ => {
                return Err(format!(
                    "a pickle that calls {module}.{name}, which is not run: save the tensors alone, with \
                     torch.save(model.state_dict(), …)"
                ));
            }
        })
    }
}

/// The tensors of a dictionary, or of the one that it names.
fn named_tensors(top: &Value) -> Option<Vec<(String, TensorPlace)>> {
    let Value::Dictionary(entries) = top else { return None };
    let entries = entries.borrow();
    let named = |(key, value): &(Value, Value)| match (key, value) {
        (Value::Text(name), Value::Tensor(tensor)) => Some((name.clone(), tensor.clone())),
        _ => None,
    };
    let tensors: Vec<_> = entries.iter().filter_map(named).collect();
    if !tensors.is_empty() {
        return Some(tensors);
    }
    let below = |wanted: &str| {
        entries
            .iter()
            .find(|(key, _)| matches!(key, Value::Text(name) if name == wanted))
    };
    ["state_dict", "model"]
        .iter()
        .find_map(|name| named_tensors(&below(name)?.1))
}

#[derive(Default)]
struct Machine {
    stack: Vec<Value>,
    memo: HashMap<usize, Value>,
}

/// The bytes of a program, from the next on.
struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or("a pickle that is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    /// A whole number of up to eight bytes, without a sign.
    fn length(&mut self, n: usize) -> Result<usize, String> {
        let number = self
            .take(n)?
            .iter()
            .rev()
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        usize::try_from(number).map_err(|error| error.to_string())
    }

    /// A whole number in two's complement.
    fn signed(&mut self, n: usize) -> Result<i64, String> {
        let bytes = self.take(n)?;
        if n > 8 {
            return Err("a pickle with a number of more than 64 bits".to_owned());
        }
        let below_zero = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let start = if below_zero { -1 } else { 0 };
        Ok(bytes
            .iter()
            .rev()
            .fold(start, |number: i64, byte| number << 8 | i64::from(*byte)))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self
            .0
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or("a pickle that is cut short")?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|error| error.to_string())
    }

    fn text(&mut self, length: usize) -> Result<Value, String> {
        Ok(Value::Text(String::from_utf8_lossy(self.take(length)?).into_owned()))
    }
}

impl Machine {
    /// What the program leaves.
    fn run(mut self, program: &[u8]) -> Result<Value, String> {
        let mut program = Program(program);
        loop {
            let instruction = program.take(1)?[0];
            match instruction {
                b'.' => return self.pop(),
                0x80 => drop(program.take(1)?),
                0x95 => drop(program.take(8)?),
                b'(' => self.stack.push(Value::Mark),
                b'0' => drop(self.pop()?),
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
                b'G' => {
                    program.take(8)?;
                    self.stack.push(Value::Other);
                }
                b'J' => self.push_whole(program.signed(4)?),
                b'K' => self.push_whole(program.length(1)? as i64),
                b'M' => self.push_whole(program.length(2)? as i64),
                0x8A => {
                    let n = program.length(1)?;
                    let number = program.signed(n)?;
                    self.push_whole(number);
                }
                b'X' => {
                    let n = program.length(4)?;
                    self.stack.push(program.text(n)?);
                }
                0x8C | b'U' => {
                    let n = program.length(1)?;
                    self.stack.push(program.text(n)?);
                }
                b')' => self.stack.push(Value::Tuple(Vec::new())),
                0x85..=0x87 => {
                    let n = usize::from(instruction - 0x84);
                    let at = self
                        .stack
                        .len()
                        .checked_sub(n)
                        .ok_or("a pickle that takes what is not there")?;
                    let values = self.stack.split_off(at);
                    self.stack.push(Value::Tuple(values));
                }
                b't' => {
                    let values = self.since_mark()?;
                    self.stack.push(Value::Tuple(values));
                }
                b']' => self.stack.push(Value::List(Rc::default())),
                b'}' => self.stack.push(Value::Dictionary(Rc::default())),
                b'a' => {
                    let value = self.pop()?;
                    self.append(vec![value])?;
                }
                b'e' => {
                    let values = self.since_mark()?;
                    self.append(values)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let values = self.since_mark()?;
                    self.set(values)?;
                }
                b'c' => {
                    let (module, name) = (program.line()?, program.line()?);
                    self.stack.push(Value::Name(Name::known(module, name)?));
                }
                0x93 => match (self.pop()?, self.pop()?) {
                    (Value::Text(name), Value::Text(module)) => {
                        self.stack.push(Value::Name(Name::known(&module, &name)?));
                    }
                    _ => return Err("a pickle with a name that is no text".to_owned()),
                },
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.stack.push(call(function, arguments)?);
                }
                // The attributes of a dictionary, such as the versions of modules, do not matter.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.stack.last(), Some(Value::Dictionary(_))) {
                        return Err("a pickle that changes an object".to_owned());
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.stack.push(storage(id)?);
                }
                b'q' => self.remember(program.length(1)?)?,
                b'r' => self.remember(program.length(4)?)?,
                0x94 => self.remember(self.memo.len())?,
                b'h' => self.recall(program.length(1)?)?,
                b'j' => self.recall(program.length(4)?)?,
                other => {
                    return Err(format!(
                        "a pickle with instruction {other:#04x}, which tensors do not need"
                    ));
                }
            }
        }
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack
            .pop()
            .ok_or_else(|| "a pickle that takes what is not there".to_owned())
    }

    fn push_whole(&mut self, number: i64) {
        self.stack.push(Value::Whole(number));
    }

    /// Everything above the last mark, which goes too.
    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark));
        let values = self.stack.split_off(mark.ok_or("a pickle without a mark")? + 1);
        self.stack.pop();
        Ok(values)
    }

    fn append(&mut self, mut values: Vec<Value>) -> Result<(), String> {
        match self.stack.last() {
            Some(Value::List(list)) => list.borrow_mut().append(&mut values),
            _ => return Err("a pickle that appends to no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, values: Vec<Value>) -> Result<(), String> {
        let Some(Value::Dictionary(entries)) = self.stack.last() else {
            return Err("a pickle that sets an item of no dictionary".to_owned());
        };
        let mut values = values.into_iter();
        while let (Some(key), Some(value)) = (values.next(), values.next()) {
            entries.borrow_mut().push((key, value));
        }
        Ok(())
    }

    fn remember(&mut self, place: usize) -> Result<(), String> {
        let value = self.stack.last().ok_or("a pickle that takes what is not there")?;
        self.memo.insert(place, value.clone());
        Ok(())
    }

    fn recall(&mut self, place: usize) -> Result<(), String> {
        let value = self.memo.get(&place).ok_or("a pickle that takes what is not there")?;
        self.stack.push(value.clone());
        Ok(())
    }
}

/// `("storage", type, key, device, length)`.
fn storage(id: Value) -> Result<Value, String> {
    let Value::Tuple(parts) = id else {
        return Err("a pickle with a foreign reference".to_owned());
    };
    match parts.as_slice() {
        [
            Value::Text(kind),
            Value::Name(Name::Storage(dtype)),
            Value::Text(key),
            ..,
        ] if kind == "storage" => Ok(Value::Storage(Storage {
            dtype: *dtype,
            key: key.clone(),
        })),
        _ => Err("a pickle with a foreign reference".to_owned()),
    }
}

/// What a call of a known function would give.
fn call(function: Value, arguments: Value) -> Result<Value, String> {
    let (Value::Name(function), Value::Tuple(arguments)) = (function, arguments) else {
        return Err("a pickle that calls what is no function".to_owned());
    };
    match (function, arguments.as_slice()) {
        (Name::Dictionary, []) => Ok(Value::Dictionary(Rc::default())),
        (
            Name::Tensor,
            [
                Value::Storage(storage),
                Value::Whole(offset),
                Value::Tuple(shape),
                Value::Tuple(strides),
                ..,
            ],
        ) if shape.len() == strides.len() => {
            let wholes = |values: &[Value]| -> Option<Vec<usize>> {
                let whole = |value: &Value| match value {
                    Value::Whole(number) => usize::try_from(*number).ok(),
                    _ => None,
                };
                values.iter().map(whole).collect()
            };
            let offset = usize::try_from(*offset).ok();
            let (offset, shape, strides) = offset
                .zip(wholes(shape))
                .zip(wholes(strides))
                .map(|((offset, shape), strides)| (offset, shape, strides))
                .ok_or("a tensor whose shape is no numbers")?;
            Ok(Value::Tensor(TensorPlace {
                storage: storage.clone(),
                offset,
                shape,
                strides,
            }))
        }
        (Name::Parameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
        _ => Err(format!(
            "a pickle that calls {function:?} with other arguments than torch.save writes"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A file that `fixtures/golden/checkpoint.py` made with PyTorch.
    fn file(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden/checkpoint");
        std::fs::read(folder.join(name)).unwrap()
    }

    #[test]
    fn tensors_are_those_that_pytorch_wrote_wherever_they_stand() {
        for name in ["plain.pth", "state_dict.pth", "model.pth"] {
            let tensors = read(&file(name)).unwrap();
            let of_f32 = |name: &str| {
                let StoredTensor { dtype, shape, bytes } = &tensors[name];
                assert_eq!(*dtype, Dtype::F32);
                let values = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                (shape.clone(), values.collect::<Vec<f32>>())
            };
            let up_to = |n: usize| (0..n).map(|value| value as f32).collect::<Vec<f32>>();
            assert_eq!(of_f32("conv"), (vec![2, 3, 2, 2], up_to(24)), "{name}");
            assert_eq!(of_f32("turned"), (vec![2, 3, 4, 5], up_to(120)), "{name}");
            assert_eq!(of_f32("part"), (vec![3], vec![4.0, 5.0, 6.0]), "{name}");
            assert_eq!(of_f32("scalar"), (vec![], vec![7.0]), "{name}");
            // 0 to 3 in the upper halves of single precision.
            let brain = [0x0000_u16, 0x3F80, 0x4000, 0x4040].map(u16::to_le_bytes).concat();
            assert_eq!(
                (tensors["brain"].dtype, &tensors["brain"].bytes),
                (Dtype::BF16, &brain),
                "{name}"
            );
            assert_eq!(
                (tensors["half"].dtype, tensors["count"].dtype),
                (Dtype::F16, Dtype::I64)
            );
            assert_eq!(tensors.len(), 7, "{name}");
        }
        let module = read(&file("module.pth")).unwrap();
        assert_eq!(module["0.weight"].shape, [2, 1, 3, 3]);
        assert_eq!(module["1.num_batches_tracked"].dtype, Dtype::I64);
    }

    #[test]
    fn what_would_run_code_is_refused_and_named() {
        let error = |name| read(&file(name)).unwrap_err();
        assert!(error("harm.pth").starts_with("a pickle that calls posix.system, which is not run"));
        assert!(error("whole_module.pth").contains("torch.save(model.state_dict(), …)"));
        assert!(error("old.pth").starts_with("PyTorch's format before 1.6"));
        assert!(!Path::new("luthier-was-here").exists());
    }

    #[test]
    fn a_file_that_is_cut_short_or_has_a_byte_changed_is_an_error_and_no_panic() {
        let whole = file("plain.pth");
        for length in 0..whole.len() {
            read(&whole[..length]).unwrap_err();
        }
        for place in 0..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 0x55;
            // Most changes are of the tensors' own numbers.
            read(&changed).ok();
        }
    }
}

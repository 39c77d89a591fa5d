//! PyTorch's checkpoints, as `torch.save` has written them since version 1.6: a zip archive with a pickle that names
//! tensors, and their bytes beside it.
//!
//! A pickle is a program for a small stack machine that may call anything in Python. The machine here knows the
//! instructions that dictionaries of tensors need, and calls nothing: what stands for a call of one of five harmless
//! functions makes plain data, and any other name is an error. See Python's `pickletools` for the instructions.

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
    let program = archive.member("data.pkl")?;
    if let Ok(order) = archive.member("byteorder")
        && order != b"little"
    {
        return Err(format!("numbers in {} byte order", String::from_utf8_lossy(order)));
    }
    let tensors = Machine::default().tensors(program)?;
    // Tensors may share their numbers, but not so many that they are more than the file.
    let mut left = 2 * bytes.len();
    let mut read = HashMap::new();
    for (name, tensor) in tensors {
        let tensor = tensor.load(&mut archive, left)?;
        left -= tensor.bytes.len();
        read.insert(name.strip_prefix("module.").unwrap_or(&name).to_owned(), tensor);
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

/// PyTorch's own limit on `numpy()`.
const MOST_AXES: usize = 64;

/// Where the numbers of a tensor are.
#[derive(Clone, Debug)]
struct Storage {
    dtype: Dtype,
    key: Rc<str>,
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
    /// The numbers, of which there may be at most `most` bytes.
    fn load(&self, archive: &mut Archive<'_>, most: usize) -> Result<StoredTensor, String> {
        let Storage { dtype, key } = &self.storage;
        let numbers = archive.member(&format!("data/{key}"))?;
        let size = dtype.bitsize() / 8;
        let outside = || format!("a tensor of shape {:?} outside of data/{key}", self.shape);
        let n = self.shape.iter().try_fold(1_usize, |n, &length| n.checked_mul(length));
        let n = n.ok_or_else(outside)?;
        let length = n.checked_mul(size).filter(|length| *length <= numbers.len());
        let length = length.ok_or_else(outside)?;
        if length > most {
            return Err("tensors of more bytes than the file has".to_owned());
        }
        let mut bytes = Vec::with_capacity(length);
        let mut index: Vec<usize> = vec![0; self.shape.len()];
        for _ in 0..n {
            let mut places = index.iter().zip(&self.strides);
            let at = places.try_fold(self.offset, |at, (&place, &stride)| {
                at.checked_add(place.checked_mul(stride)?)
            });
            let number = at.and_then(|at| numbers.get(at.checked_mul(size)?..)?.get(..size));
            bytes.extend(number.ok_or_else(outside)?);
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

/// What lies on the machine's stack: a number, or the place of something larger in the machine's memory. So it is copied
/// and forgotten in no time, however things contain each other.
#[derive(Clone, Copy, Debug)]
enum Value {
    Mark,
    /// Something whose value does not matter.
    Other,
    Whole(i64),
    Text(usize),
    Tuple(usize),
    List,
    Dictionary(usize),
    Name(Name),
    Storage(usize),
    Tensor(usize),
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

/// The machine's memory holds what a program makes until its end. It grows with the length of the program, and not with
/// its square: what may be long is there once, however many things have it.
#[derive(Default)]
struct Machine {
    stack: Vec<Value>,
    memo: HashMap<usize, Value>,
    texts: Vec<Rc<str>>,
    tuples: Vec<Vec<Value>>,
    dictionaries: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<TensorPlace>,
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

    fn text(&mut self, length: usize) -> Result<String, String> {
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }
}

/// Adds something to a memory, and tells its place.
fn keep<T>(memory: &mut Vec<T>, thing: T) -> usize {
    memory.push(thing);
    memory.len() - 1
}

impl Machine {
    /// The tensors by name, in the dictionary that the program leaves, or in the one that this has as `state_dict` or
    /// `model`: a training run saves other tensors beside it.
    fn tensors(mut self, program: &[u8]) -> Result<Vec<(Rc<str>, TensorPlace)>, String> {
        let Value::Dictionary(top) = self.run(program)? else {
            return Err("a pickle of something else than a dictionary".to_owned());
        };
        let below = |wanted: &str| {
            let mut entries = self.dictionaries[top].iter();
            entries.find_map(|entry| match *entry {
                (Value::Text(key), Value::Dictionary(value)) if *self.texts[key] == *wanted => Some(value),
                _ => None,
            })
        };
        let found = ["state_dict", "model"].into_iter().filter_map(below).chain([top]);
        let mut named = found.map(|dictionary| self.named(dictionary));
        let named = named.find(|tensors| !tensors.is_empty());
        named.ok_or_else(|| "no dictionary of tensors, neither at the top nor as state_dict or model".to_owned())
    }

    /// The tensors of a dictionary.
    fn named(&self, dictionary: usize) -> Vec<(Rc<str>, TensorPlace)> {
        let named = |entry: &(Value, Value)| match *entry {
            (Value::Text(name), Value::Tensor(tensor)) => {
                Some((self.texts[name].clone(), self.tensors[tensor].clone()))
            }
            _ => None,
        };
        self.dictionaries[dictionary].iter().filter_map(named).collect()
    }

    /// What the program leaves.
    fn run(&mut self, program: &[u8]) -> Result<Value, String> {
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
                    self.push_text(program.text(n)?);
                }
                0x8C | b'U' => {
                    let n = program.length(1)?;
                    self.push_text(program.text(n)?);
                }
                b')' => self.push_tuple(Vec::new()),
                0x85..=0x87 => {
                    let n = usize::from(instruction - 0x84);
                    let at = self.stack.len().checked_sub(n).ok_or(NOT_THERE)?;
                    let values = self.stack.split_off(at);
                    self.push_tuple(values);
                }
                b't' => {
                    let values = self.since_mark()?;
                    self.push_tuple(values);
                }
                b']' => self.stack.push(Value::List),
                b'}' => self.push_dictionary(),
                b'a' => {
                    self.pop()?;
                    self.append()?;
                }
                b'e' => {
                    self.since_mark()?;
                    self.append()?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(&[key, value])?;
                }
                b'u' => {
                    let values = self.since_mark()?;
                    self.set(&values)?;
                }
                b'c' => {
                    let (module, name) = (program.line()?, program.line()?);
                    self.stack.push(Value::Name(Name::known(module, name)?));
                }
                0x93 => match (self.pop()?, self.pop()?) {
                    (Value::Text(name), Value::Text(module)) => {
                        let name = Name::known(&self.texts[module], &self.texts[name])?;
                        self.stack.push(Value::Name(name));
                    }
                    _ => return Err("a pickle with a name that is no text".to_owned()),
                },
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.call(function, arguments)?;
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
                    self.push_storage(id)?;
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
        self.stack.pop().ok_or_else(|| NOT_THERE.to_owned())
    }

    fn push_whole(&mut self, number: i64) {
        self.stack.push(Value::Whole(number));
    }

    fn push_text(&mut self, text: String) {
        self.stack.push(Value::Text(keep(&mut self.texts, text.into())));
    }

    fn push_tuple(&mut self, values: Vec<Value>) {
        self.stack.push(Value::Tuple(keep(&mut self.tuples, values)));
    }

    fn push_dictionary(&mut self) {
        self.stack
            .push(Value::Dictionary(keep(&mut self.dictionaries, Vec::new())));
    }

    /// Everything above the last mark, which goes too.
    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark));
        let values = self.stack.split_off(mark.ok_or("a pickle without a mark")? + 1);
        self.stack.pop();
        Ok(values)
    }

    /// What is in a list does not matter.
    fn append(&self) -> Result<(), String> {
        match self.stack.last() {
            Some(Value::List) => Ok(()),
            _ => Err("a pickle that appends to no list".to_owned()),
        }
    }

    /// Keys and values in turn.
    fn set(&mut self, values: &[Value]) -> Result<(), String> {
        let Some(&Value::Dictionary(dictionary)) = self.stack.last() else {
            return Err("a pickle that sets an item of no dictionary".to_owned());
        };
        let entries = values.as_chunks().0.iter().map(|&[key, value]| (key, value));
        self.dictionaries[dictionary].extend(entries);
        Ok(())
    }

    fn remember(&mut self, place: usize) -> Result<(), String> {
        let value = *self.stack.last().ok_or(NOT_THERE)?;
        self.memo.insert(place, value);
        Ok(())
    }

    fn recall(&mut self, place: usize) -> Result<(), String> {
        self.stack.push(*self.memo.get(&place).ok_or(NOT_THERE)?);
        Ok(())
    }

    /// `("storage", type, key, device, length)`.
    fn push_storage(&mut self, id: Value) -> Result<(), String> {
        let parts = self.tuple(id).unwrap_or_default();
        let storage = match *parts {
            [
                Value::Text(kind),
                Value::Name(Name::Storage(dtype)),
                Value::Text(key),
                ..,
            ] if *self.texts[kind] == *"storage" => Storage {
                dtype,
                key: self.texts[key].clone(),
            },
            _ => return Err("a pickle with a foreign reference".to_owned()),
        };
        self.stack.push(Value::Storage(keep(&mut self.storages, storage)));
        Ok(())
    }

    fn tuple(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(place) => Some(&self.tuples[place]),
            _ => None,
        }
    }

    /// Whole numbers from 0 on, one for each axis of a tensor.
    fn wholes(&self, tuple: Value) -> Option<Vec<usize>> {
        let whole = |value: &Value| match value {
            Value::Whole(number) => usize::try_from(*number).ok(),
            _ => None,
        };
        let axes = self.tuple(tuple).filter(|axes| axes.len() <= MOST_AXES)?;
        axes.iter().map(whole).collect()
    }

    /// Puts onto the stack what a call of a known function would give.
    fn call(&mut self, function: Value, arguments: Value) -> Result<(), String> {
        let (Value::Name(function), Some(arguments)) = (function, self.tuple(arguments)) else {
            return Err("a pickle that calls what is no function".to_owned());
        };
        match (function, arguments) {
            (Name::Dictionary, []) => self.push_dictionary(),
            (Name::Tensor, &[Value::Storage(storage), Value::Whole(offset), shape, strides, ..]) => {
                let place = usize::try_from(offset)
                    .ok()
                    .zip(self.wholes(shape))
                    .zip(self.wholes(strides));
                let place = place.filter(|((_, shape), strides)| shape.len() == strides.len());
                let ((offset, shape), strides) = place.ok_or("a tensor whose shape is not up to 64 numbers")?;
                let tensor = TensorPlace {
                    storage: self.storages[storage].clone(),
                    offset,
                    shape,
                    strides,
                };
                self.stack.push(Value::Tensor(keep(&mut self.tensors, tensor)));
            }
            (Name::Parameter, &[tensor @ Value::Tensor(_), ..]) => self.stack.push(tensor),
            _ => {
                return Err(format!(
                    "a pickle that calls {function:?} with other arguments than torch.save writes"
                ));
            }
        }
        Ok(())
    }
}

/// What is wrong with a program that takes more from the stack than it has put there.
const NOT_THERE: &str = "a pickle that takes what is not there";

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
    fn things_that_contain_themselves_or_are_nested_without_end_cost_no_more_than_their_program() {
        let run = |program: &[u8]| Machine::default().tensors(program).map(|tensors| tensors.len());
        // A dictionary that has itself as its state_dict.
        run(b"}q\0X\x0a\0\0\0state_dicth\0s.").unwrap_err();
        // A million tuples, one in the other; and tuples of two of the one before.
        run(&[b")".to_vec(), vec![0x85; 1_000_000], b".".to_vec()].concat()).unwrap_err();
        run(&[b"K\0q\0".to_vec(), b"h\0h\0\x86q\0".repeat(1000), b".".to_vec()].concat()).unwrap_err();
        run(&[b"]q\0".to_vec(), b"]h\0aq\0".repeat(100_000), b".".to_vec()].concat()).unwrap_err();
    }

    #[test]
    fn a_tensor_has_no_more_axes_than_pytorch_allows() {
        let error = |axes: usize| {
            let shape = [b"(", &b"K\x01".repeat(axes)[..], b"t"].concat();
            let storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQ";
            let function = b"ctorch._utils\n_rebuild_tensor_v2\n(";
            let program = [&function[..], storage, b"K\0", &shape, &shape, b"tR."].concat();
            Machine::default().tensors(&program).unwrap_err()
        };
        assert_eq!(error(64), "a pickle of something else than a dictionary");
        assert_eq!(error(65), "a tensor whose shape is not up to 64 numbers");
    }

    #[test]
    fn tensors_beside_the_state_dict_are_not_taken_for_the_networks() {
        let tensors = read(&file("training.pth")).unwrap();
        assert_eq!(tensors.len(), 7);
        assert!(!tensors.contains_key("best_acc1"));
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
